// Faults that the emulation finds, by number; 0 is none.

#include "primitives.h"

enum Fault {
    NONE,
    DIVERGENT,
    EARLY_END,
    HALF_BARRIER,
    MISALIGNED,
    INDEX,
    PAST_SHARED,
    FORGOTTEN_COPY,
    MISALIGNED_ROW,
    SKEWED_POINTER,
    BLOCKS_RACE,
    WARP_RACE,
    OUTSIDE_TENSOR,
    OUTSIDE_STATIC
};

KERNEL(64, 1) void faults(float* y, const float* x, int fault) {
    DYNAMIC_SHARED(shared);
    float* tile = reinterpret_cast<float*>(shared);
    int i = thread_x();
    float value = x[i];
    if (fault == DIVERGENT) {
        if (i % 2) {
            value = shuffle_xor(value, 1);
        } else {
            value = shuffle_down(value, 1);
        }
    }
    if (fault == EARLY_END) {
        if (i == 40) return;
        value = shuffle(value, 0);
    }
    if (fault == HALF_BARRIER && i < 32) barrier();
    if (fault == MISALIGNED) store_16(shared + 8, Vector4{});
    if (fault == INDEX) {
        float few[4] = {};
        few[i] = value;
        value = few[i % 4];
    }
    if (fault == PAST_SHARED) tile[i + 1] = value;
    if (fault == FORGOTTEN_COPY) copy_async_16(shared + 16 * (i / 4), x + i / 4 * 4);
    if (fault == MISALIGNED_ROW) {
        unsigned r[2];
        ldmatrix_x2(r, shared + 8 * (i % 32));
    }
    if (fault == SKEWED_POINTER) value = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + fault);
    if (fault == WARP_RACE) {
        tile[i] = value;
        value = shuffle_xor(value, 1) + tile[i ^ 1];
    }
    if (fault == OUTSIDE_TENSOR) value = x[i + 1];
#ifdef STATIC
    SHARED float still[64];
    if (fault == OUTSIDE_STATIC) {
        float* pointer = still;
        pointer[i + 1] = value;
    }
#endif
    y[fault == BLOCKS_RACE ? i : block_x() * 64 + i] = value;
}
