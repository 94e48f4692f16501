/* Threads that work through the stages of a job together.
 *
 * A stage is cut into chunks. Each thread has a share of them, which it takes one by one, and then it takes what is left
 * of the others' shares; so a thread that the system took away, or that has not woken yet, holds nobody up. A stage
 * begins when all chunks of the one before are done. Waiting spins, since stages last microseconds; between jobs the
 * threads sleep.
 */
#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

enum { TEAM_LIMIT = 64, TEAM_SPIN_NANOSECONDS = 50000 };

#if defined(__x86_64__) || defined(__i386__)
#define TEAM_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define TEAM_PAUSE() __asm__ volatile("yield")
#else
#define TEAM_PAUSE() ((void)0)
#endif

typedef struct Team Team;
typedef void TeamWork(void *job, int thread);

/* A thread's share of the stage at hand: the stage's number above, the next chunk of the share below. */
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
} TeamShare;

struct Team {
    pthread_mutex_t lock; /* one job at a time */
    pthread_mutex_t bed_lock;
    pthread_cond_t bed;
    pid_t process; /* threads do not survive a fork */
    int started, threads;
    TeamWork *work;
    void *job;
    _Alignas(64) _Atomic uint64_t open; /* the number of the job at hand, 0 when there is none */
    _Alignas(64) _Atomic int inside;    /* threads that are in a job */
    _Alignas(64) _Atomic uint32_t stage;
    _Alignas(64) _Atomic int done; /* chunks of the stage */
    TeamShare shares[TEAM_LIMIT];
    uint64_t jobs;
};

static Team team = {.lock = PTHREAD_MUTEX_INITIALIZER, .bed_lock = PTHREAD_MUTEX_INITIALIZER, .bed = PTHREAD_COND_INITIALIZER};

static int64_t team_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void *team_live(void *number) {
    const int me = (int)(intptr_t)number;
    uint64_t last = 0;
    for (;;) {
        uint64_t open;
        const int64_t until = team_nanoseconds() + TEAM_SPIN_NANOSECONDS;
        while ((open = atomic_load(&team.open)) == 0 || open == last) {
            if (team_nanoseconds() < until) {
                TEAM_PAUSE();
                continue;
            }
            pthread_mutex_lock(&team.bed_lock);
            while ((open = atomic_load(&team.open)) == 0 || open == last) pthread_cond_wait(&team.bed, &team.bed_lock);
            pthread_mutex_unlock(&team.bed_lock);
        }
        last = open;
        atomic_fetch_add(&team.inside, 1);
        if (atomic_load(&team.open) == open && me < team.threads) team.work(team.job, me);
        atomic_fetch_sub(&team.inside, 1);
    }
    return NULL;
}

/* Opens a stage: every share begins anew. Called by the one thread that finished the stage before. */
static void team_open_stage(uint32_t stage) {
    for (int thread = 0; thread < team.threads; thread++)
        atomic_store_explicit(&team.shares[thread].next, (uint64_t)stage << 32, memory_order_relaxed);
    atomic_store_explicit(&team.done, 0, memory_order_relaxed);
    atomic_store_explicit(&team.stage, stage, memory_order_release);
}

/* The next chunk of `owner`'s share of a stage, or -1 when it is used up or the stage is over. */
static int team_claim(uint32_t stage, int owner, int chunks) {
    const int from = (int)((int64_t)chunks * owner / team.threads);
    const int share = (int)((int64_t)chunks * (owner + 1) / team.threads) - from;
    uint64_t next = atomic_load_explicit(&team.shares[owner].next, memory_order_acquire);
    do {
        if ((uint32_t)(next >> 32) != stage || (int)(uint32_t)next >= share) return -1;
    } while (!atomic_compare_exchange_weak_explicit(
        &team.shares[owner].next, &next, next + 1, memory_order_acq_rel, memory_order_acquire));
    return from + (int)(uint32_t)next;
}

/* Tells that a thread did `done` chunks of a stage; the last one opens the next stage. */
static void team_finish(uint32_t stage, int done, int chunks) {
    if (done && atomic_fetch_add_explicit(&team.done, done, memory_order_acq_rel) + done == chunks)
        team_open_stage(stage + 1);
}

static void team_wait(uint32_t stage) {
    for (int spins = 1; atomic_load_explicit(&team.stage, memory_order_acquire) <= stage; spins++) {
        TEAM_PAUSE();
        if (spins % 4096 == 0) sched_yield();
    }
}

/* Runs `work(job, thread)` on this thread and on up to `threads` - 1 others, of which some may never come. Returns when
 * `work` has returned on this thread and no other is inside. */
static void team_run(int threads, TeamWork *work, void *job) {
    pthread_mutex_lock(&team.lock);
    if (team.process != getpid()) {
        team.process = getpid();
        team.started = 1;
        atomic_store(&team.inside, 0);
        pthread_mutex_init(&team.bed_lock, NULL);
        pthread_cond_init(&team.bed, NULL);
    }
    if (threads > TEAM_LIMIT) threads = TEAM_LIMIT;
    while (team.started < threads) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, team_live, (void *)(intptr_t)team.started)) break;
        pthread_detach(thread);
        team.started++;
    }
    team.threads = threads < team.started ? threads : team.started;
    team.work = work;
    team.job = job;
    team_open_stage(0);
    if (team.threads > 1) {
        pthread_mutex_lock(&team.bed_lock);
        atomic_store(&team.open, ++team.jobs);
        pthread_cond_broadcast(&team.bed);
        pthread_mutex_unlock(&team.bed_lock);
    }
    work(job, 0);
    atomic_store(&team.open, 0);
    while (atomic_load(&team.inside)) TEAM_PAUSE();
    pthread_mutex_unlock(&team.lock);
}

#endif
