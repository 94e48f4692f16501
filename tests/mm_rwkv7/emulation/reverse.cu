// Reverses every block of THREADS floats, through static and dynamic shared memory: the smallest kernel that needs a barrier.

#include "primitives.h"

#ifndef BARRIER
#define BARRIER barrier()
#endif

KERNEL(THREADS, 1) void reverse(float* y, const float* x, int length) {
    DYNAMIC_SHARED(bytes);
    SHARED float still[THREADS];
    float* tile = reinterpret_cast<float*>(bytes);
    int i = block_x() * THREADS + thread_x();
    tile[thread_x()] = i < length ? x[i] : 0.0f;
    still[thread_x()] = 2.0f * tile[thread_x()];
    BARRIER;
    if (i < length) y[i] = still[THREADS - 1 - thread_x()] - tile[THREADS - 1 - thread_x()];
}
