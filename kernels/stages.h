/* The stages of a job that threads (threads.h) work through together.

   A stage is cut into chunks. Each thread has a share of them, which it takes one by one, and then it takes what is left
   of the others' shares; so a thread that the system took away, or that has not woken yet, holds nobody up. A stage
   begins when all chunks of the one before are done. Waiting spins, since stages last microseconds. */

#ifndef MM_RWKV7_STAGES_H
#define MM_RWKV7_STAGES_H

#include "threads.h"

#include <sched.h>
#include <stdint.h>

enum { MOST_SHARES = 64 };

/* A thread's share of the stage at hand: the stage's number above, the next chunk of the share below. */
struct share {
    _Alignas(64) _Atomic uint64_t next;
};

struct stages {
    int threads; /* that have a share */
    _Alignas(64) _Atomic uint32_t stage;
    _Alignas(64) _Atomic int done; /* chunks of the stage */
    struct share shares[MOST_SHARES];
};

/* Opens a stage: every share begins anew. Called before the job, and then by the one thread that finished a stage. */
static void open_stage(struct stages *stages, uint32_t stage) {
    for (int thread = 0; thread < stages->threads; thread++)
        atomic_store_explicit(&stages->shares[thread].next, (uint64_t)stage << 32, memory_order_relaxed);
    atomic_store_explicit(&stages->done, 0, memory_order_relaxed);
    atomic_store_explicit(&stages->stage, stage, memory_order_release);
}

/* The next chunk of `owner`'s share of a stage, or -1 when it is used up or the stage is over. */
static int claim_chunk(struct stages *stages, uint32_t stage, int owner, int chunks) {
    const int from = (int)((int64_t)chunks * owner / stages->threads);
    const int share = (int)((int64_t)chunks * (owner + 1) / stages->threads) - from;
    _Atomic uint64_t *place = &stages->shares[owner].next;
    uint64_t next = atomic_load_explicit(place, memory_order_acquire);
    do {
        if ((uint32_t)(next >> 32) != stage || (int)(uint32_t)next >= share) return -1;
    } while (!atomic_compare_exchange_weak_explicit(place, &next, next + 1, memory_order_acq_rel, memory_order_acquire));
    return from + (int)(uint32_t)next;
}

/* Tells that a thread did `done` chunks of a stage; the last one opens the next stage. */
static void finish_chunks(struct stages *stages, uint32_t stage, int done, int chunks) {
    if (done && atomic_fetch_add_explicit(&stages->done, done, memory_order_acq_rel) + done == chunks)
        open_stage(stages, stage + 1);
}

static void await_end(struct stages *stages, uint32_t stage) {
    for (int looks = 1; atomic_load_explicit(&stages->stage, memory_order_acquire) <= stage; looks++) {
        pool_pause();
        if (looks % 4096 == 0) sched_yield();
    }
}

/* Runs work(job, thread), which goes through `stages`, on this thread and some others, of which some may never come. */
static void run_stages(struct stages *stages, pool_task work, void *job, int threads) {
    stages->threads = threads < 1 ? 1 : threads < MOST_SHARES ? threads : MOST_SHARES;
    open_stage(stages, 0);
    run_together(work, job, stages->threads, 1);
}

#endif
