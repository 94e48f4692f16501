"""Our models inside other harnesses. Each module here is imported by the package that it is for, never by ours."""
