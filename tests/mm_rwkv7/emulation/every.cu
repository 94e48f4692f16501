// Every primitive once, for test_emulation.py; the registers of a warp go in and out as they are, [lane][register].

#include "primitives.h"

KERNEL(256, 1) void from_16_bits(float* as_bf16, float* as_half) {
    int x = block_x() * 256 + thread_x();
    as_bf16[x] = bf16_to_float(static_cast<unsigned short>(x));
    as_half[x] = half_to_float(static_cast<unsigned short>(x));
}

// y: [n][5]
KERNEL(256, 1) void to_16_bits(unsigned* y, const float* x, int n) {
    int i = block_x() * 256 + thread_x();
    if (i >= n) return;
    y[5 * i] = float_to_bf16(x[i]);
    y[5 * i + 1] = float_to_half(x[i]);
    y[5 * i + 2] = pack_bf16(x[i], x[n - 1 - i]);
    y[5 * i + 3] = pack_half(x[i], x[n - 1 - i]);
    y[5 * i + 4] = round_tf32(x[i]);
}

// y: [5][n]
KERNEL(256, 1) void approximate(float* y, const float* x, int n) {
    int i = block_x() * 256 + thread_x();
    if (i >= n) return;
    y[i] = exp_fast(x[i]);
    y[n + i] = exp2_fast(x[i]);
    y[2 * n + i] = tanh_fast(x[i]);
    y[3 * n + i] = reciprocal(x[i]);
    y[4 * n + i] = reciprocal_root(fabsf(x[i]));
}

// y: [4][threads]
KERNEL(64, 1) void shuffles(int* y, const int* x, const int* lanes, int n) {
    int i = thread_x();
    y[i] = shuffle(x[i], lanes[i]);
    y[64 + i] = shuffle_xor(x[i], n);
    y[128 + i] = shuffle_down(x[i], n);
    y[192 + i] = shuffle_up(x[i], n);
}

// MMA: one of the three; d: [lane][4], a: [lane][4], b: [lane][2]
KERNEL(32, 1) void product(float* d, const unsigned* a, const unsigned* b) {
    float D[4];
    unsigned A[4], B[2];
    for (int i = 0; i < 4; i++) D[i] = d[4 * thread_x() + i];
    for (int i = 0; i < 4; i++) A[i] = a[4 * thread_x() + i];
    for (int i = 0; i < 2; i++) B[i] = b[2 * thread_x() + i];
    MMA(D, A, B);
    for (int i = 0; i < 4; i += 2) store_8(d + 4 * thread_x() + i, D[i], D[i + 1]);
}

// memory: 512 rows of 16 bytes; rows: which one each lane points to; y: [lane][12]
KERNEL(32, 1) void matrices(unsigned* y, const void* memory, const int* rows) {
    DYNAMIC_SHARED(shared);
    for (int i = thread_x(); i < 512; i += 32) {
        *reinterpret_cast<Vector4*>(shared + 16 * i) = load_16(static_cast<const unsigned char*>(memory) + 16 * i);
    }
    warp_barrier();
    const void* row = shared + 16 * rows[thread_x()];
    unsigned r[12], four[4], two[2];
    ldmatrix_x4(four, row);
    for (int i = 0; i < 4; i++) r[i] = four[i];
    ldmatrix_x4_trans(four, row);
    for (int i = 0; i < 4; i++) r[4 + i] = four[i];
    ldmatrix_x2(two, row);
    for (int i = 0; i < 2; i++) r[8 + i] = two[i];
    ldmatrix_x2_trans(two, row);
    for (int i = 0; i < 2; i++) r[10 + i] = two[i];
    for (int i = 0; i < 12; i += 4) store_16(y + 12 * thread_x() + i, {r[i], r[i + 1], r[i + 2], r[i + 3]});
}

// x, y: [steps][threads][16 bytes]; two copies are on their way while a third is used. WAIT 2 is one too few.
#ifndef WAIT
#define WAIT 1
#endif
KERNEL(64, 1) void pipeline(Vector4* y, const Vector4* x, int steps, int wanted) {
    DYNAMIC_SHARED(shared);
    Vector4* ring = reinterpret_cast<Vector4*>(shared);
    for (int step = 0; step < steps + 2; step++) {
        if (step < steps) {
            copy_async_16_or_zero(ring + step % 3 * 64 + thread_x(), x + step * 64 + thread_x(), thread_x() < wanted);
        }
        copy_async_commit();
        if (step == 0) continue;
        copy_async_wait<WAIT>();
        barrier();
        if (step <= steps) y[(step - 1) * 64 + thread_x()] = ring[(step - 1) % 3 * 64 + 63 - thread_x()];
        barrier();
    }
    copy_async_wait<0>();
}

// Blocks of a (2, 3, 4) grid: each thread adds its number.
KERNEL(64, 1) void places(float* sums, float* total, int* dots, const int* x) {
    int block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
    atomic_add(total, 1.0f);
    atomic_add(sums + block, static_cast<float>(thread_x()));
    if (block == grid_x() * grid_y() * grid_z() - 1) {
        Vector4 v = load_16_streaming(x + 4 * thread_x());
        dots[thread_x()] = dot4_int8(static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z));
    }
}
