/* A pool of threads that share the tasks of one loop.

   run_parallel(body, context, tasks, threads) calls body(context, task, worker) once for every task from 0 to tasks - 1,
   on the caller's thread and at most threads - 1 others; worker, from 0 to threads - 1, tells which of them it is. It
   returns when all are done. Tasks are handed out one by one, so they may take unequal time.

   Workers start when they are first needed, look out for the next loop for a moment and then sleep. One that wakes too
   late to be of help is not waited for. A call that finds the pool at work, from another thread or from inside a body,
   runs its tasks alone. A forked child gets a pool of its own. Each library that includes this file has one pool. */

#ifndef MM_RWKV7_THREADS_H
#define MM_RWKV7_THREADS_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

enum { MOST_THREADS = 256, LOOKS_BEFORE_SLEEP = 2000 };

typedef void (*task_body)(void *context, int task, int worker);

struct pool_worker {
    int index;     /* the caller is 0 */
    unsigned seen; /* the last loop that it looked at */
};

static struct {
    pthread_once_t once;
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    atomic_flag busy;   /* a loop is running */
    atomic_uint loop;   /* counts loops */
    atomic_int next;    /* the first task that nobody has taken */
    atomic_int joined;  /* workers inside the loop; like all that follows, changed under the mutex */
    int open;           /* the loop can be joined */
    task_body body;
    void *context;
    int tasks, threads;
    int workers; /* threads started so far */
    struct pool_worker worker[MOST_THREADS];
} pool = {
    .once = PTHREAD_ONCE_INIT,
    .mutex = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .finished = PTHREAD_COND_INITIALIZER,
    .busy = ATOMIC_FLAG_INIT,
};

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* In a forked child: the parent's workers are not there, and what they held cannot be given back. */
static void pool_forget(void) {
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.finished, NULL);
    atomic_flag_clear(&pool.busy);
    atomic_store(&pool.joined, 0);
    pool.open = 0;
    pool.workers = 0;
}

static void pool_watch_forks(void) { pthread_atfork(NULL, NULL, pool_forget); }

static void pool_take_tasks(int worker) {
    for (int task; (task = atomic_fetch_add(&pool.next, 1)) < pool.tasks;) pool.body(pool.context, task, worker);
}

static void pool_await_loop(unsigned seen) {
    for (int i = 0; i < LOOKS_BEFORE_SLEEP; i++, pool_pause())
        if (atomic_load(&pool.loop) != seen) return;
    pthread_mutex_lock(&pool.mutex);
    while (atomic_load(&pool.loop) == seen) pthread_cond_wait(&pool.wake, &pool.mutex);
    pthread_mutex_unlock(&pool.mutex);
}

static void *pool_work(void *given) {
    struct pool_worker *self = given;
    for (;;) {
        pool_await_loop(self->seen);
        pthread_mutex_lock(&pool.mutex);
        self->seen = atomic_load(&pool.loop);
        int joins = pool.open && self->index < pool.threads;
        if (joins) atomic_fetch_add(&pool.joined, 1);
        pthread_mutex_unlock(&pool.mutex);
        if (!joins) continue;
        pool_take_tasks(self->index);
        pthread_mutex_lock(&pool.mutex);
        if (atomic_fetch_sub(&pool.joined, 1) == 1) pthread_cond_signal(&pool.finished);
        pthread_mutex_unlock(&pool.mutex);
    }
    return NULL;
}

static void pool_open(task_body body, void *context, int tasks, int threads) {
    pthread_mutex_lock(&pool.mutex);
    pool.body = body;
    pool.context = context;
    pool.tasks = tasks;
    pool.threads = threads;
    pool.open = 1;
    atomic_store(&pool.next, 0);
    atomic_fetch_add(&pool.loop, 1);
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
        *self = (struct pool_worker){.index = pool.workers + 1, .seen = atomic_load(&pool.loop)};
        if (pthread_create(&thread, NULL, pool_work, self) != 0) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void run_parallel(task_body body, void *context, int tasks, int threads) {
    if (threads > tasks) threads = tasks;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    pthread_once(&pool.once, pool_watch_forks);
    if (threads <= 1 || atomic_flag_test_and_set(&pool.busy)) {
        for (int task = 0; task < tasks; task++) body(context, task, 0);
        return;
    }
    pool_start_workers(threads - 1);
    pool_open(body, context, tasks, threads);
    pool_take_tasks(0);
    pool_close();
    atomic_flag_clear(&pool.busy);
}

#endif
