/* A pool of threads that work on one job together.

   run_together(work, job, threads, waits) calls work(job, thread) on the caller's thread, which is number 0, and on at
   most threads - 1 others. It returns when the caller's call is over and no other is left inside. One that wakes too late
   to be of help is not waited for, so the caller must be able to do all of the work itself. A call that finds the pool
   at work for another one waits for its turn, or, unless it `waits`, does its job alone.

   run_parallel(body, context, tasks, threads) is a loop on top of it: body(context, task, worker) once for every task from
   0 to tasks - 1. Tasks are handed out one by one, so they may take unequal time. It does not wait for a turn: it may be
   called from inside a body.

   Workers start when they are first needed, look out for the next job for a moment and then sleep. A forked child gets a
   pool of its own, whatever the parent's was doing. Each library that includes this file has one pool. */

#ifndef MM_RWKV7_THREADS_H
#define MM_RWKV7_THREADS_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

enum { MOST_THREADS = 256, LOOKS_BEFORE_SLEEP = 2000 };

typedef void (*pool_task)(void *job, int thread);
typedef void (*task_body)(void *context, int task, int worker);

struct pool_worker {
    int index;     /* the caller is 0 */
    unsigned seen; /* the last job that it looked at */
};

static struct {
    pthread_once_t once;
    pthread_mutex_t turn; /* whose holder may open a job and start workers */
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    atomic_uint jobs;  /* counts them */
    atomic_int joined; /* workers inside the job; like all that follows, changed under the mutex */
    int open;          /* the job can be joined */
    pool_task work;
    void *job;
    int threads;
    int workers; /* threads started so far */
    struct pool_worker worker[MOST_THREADS];
} pool = {
    .once = PTHREAD_ONCE_INIT,
    .turn = PTHREAD_MUTEX_INITIALIZER,
    .mutex = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .finished = PTHREAD_COND_INITIALIZER,
};

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* In a forked child: the parent's workers are not there, and what they or its other threads held cannot be given back. */
static void pool_forget(void) {
    pthread_mutex_init(&pool.turn, NULL);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.finished, NULL);
    atomic_store(&pool.joined, 0);
    pool.open = 0;
    pool.workers = 0;
}

static void pool_watch_forks(void) { pthread_atfork(NULL, NULL, pool_forget); }

static void pool_await_job(unsigned seen) {
    for (int i = 0; i < LOOKS_BEFORE_SLEEP; i++, pool_pause())
        if (atomic_load(&pool.jobs) != seen) return;
    pthread_mutex_lock(&pool.mutex);
    while (atomic_load(&pool.jobs) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
    pthread_mutex_unlock(&pool.mutex);
}

static void *pool_live(void *given) {
    struct pool_worker *self = given;
    for (;;) {
        pool_await_job(self->seen);
        pthread_mutex_lock(&pool.mutex);
        self->seen = atomic_load(&pool.jobs);
        int joins = pool.open && self->index < pool.threads;
        if (joins) atomic_fetch_add(&pool.joined, 1);
        pthread_mutex_unlock(&pool.mutex);
        if (!joins) continue;
        pool.work(pool.job, self->index);
        pthread_mutex_lock(&pool.mutex);
        if (atomic_fetch_sub(&pool.joined, 1) == 1) pthread_cond_signal(&pool.finished);
        pthread_mutex_unlock(&pool.mutex);
    }
    return NULL;
}

static void pool_open(pool_task work, void *job, int threads) {
    pthread_mutex_lock(&pool.mutex);
    pool.work = work;
    pool.job = job;
    pool.threads = threads;
    pool.open = 1;
    atomic_fetch_add(&pool.jobs, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
}

static void pool_close(void) {
    pthread_mutex_lock(&pool.mutex);
    pool.open = 0;
    pthread_mutex_unlock(&pool.mutex);
    for (int i = 0; i < LOOKS_BEFORE_SLEEP && atomic_load(&pool.joined); i++) pool_pause();
    pthread_mutex_lock(&pool.mutex);
    while (atomic_load(&pool.joined)) pthread_cond_wait(&pool.finished, &pool.mutex);
    pthread_mutex_unlock(&pool.mutex);
}

/* Signals are for the threads that the program knows of. */
static void pool_start_workers(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < wanted) {
        struct pool_worker *self = &pool.worker[pool.workers];
        pthread_t thread;
        *self = (struct pool_worker){.index = pool.workers + 1, .seen = atomic_load(&pool.jobs)};
        if (pthread_create(&thread, NULL, pool_live, self) != 0) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void run_together(pool_task work, void *job, int threads, int waits) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    pthread_once(&pool.once, pool_watch_forks);
    if (threads <= 1 || (waits ? pthread_mutex_lock(&pool.turn) : pthread_mutex_trylock(&pool.turn)) != 0) {
        work(job, 0);
        return;
    }
    pool_start_workers(threads - 1);
    pool_open(work, job, threads);
    work(job, 0);
    pool_close();
    pthread_mutex_unlock(&pool.turn);
}

struct pool_loop {
    task_body body;
    void *context;
    int tasks;
    atomic_int next; /* the first task that nobody has taken */
};

static inline void pool_take_tasks(void *given, int thread) {
    struct pool_loop *loop = given;
    for (int task; (task = atomic_fetch_add(&loop->next, 1)) < loop->tasks;) loop->body(loop->context, task, thread);
}

static inline void run_parallel(task_body body, void *context, int tasks, int threads) {
    struct pool_loop loop = {.body = body, .context = context, .tasks = tasks};
    run_together(pool_take_tasks, &loop, threads < tasks ? threads : tasks, 0);
}

#endif
