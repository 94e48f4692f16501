"""What people touch: the command line and the web page, both over one Pipeline."""
