// What the kernels need beyond plain C++17: places, barriers, shuffles, conversions, tensor cores, asynchronous copies.
// Nothing is included, so NVRTC compiles a kernel from memory, for sm_75 to sm_121. The tests compile the same kernels
// for the host with a header of the same functions (tests/mm_rwkv7/emulation/primitives.h): a kernel uses these and
// plain C++, nothing else, and a function added here is added there.
//
// A warp is 32 lanes, lane = thread_x() % 32. Functions marked (warp) are executed by all 32 lanes together. They exchange
// registers; of them only warp_barrier() also makes one lane's writes to memory visible to the others.

#ifndef MM_RWKV7_PRIMITIVES_H
#define MM_RWKV7_PRIMITIVES_H

#define KERNEL(threads, min_blocks) extern "C" __global__ __launch_bounds__(threads, min_blocks)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__ __align__(16)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

DEVICE int thread_x() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }
DEVICE int grid_y() { return gridDim.y; }
DEVICE int grid_z() { return gridDim.z; }

// All threads of the block arrive, and see what the others wrote before.
DEVICE void barrier() { __syncthreads(); }

// (warp) All lanes arrive, and see what the others wrote before.
DEVICE void warp_barrier() { __syncwarp(); }

// (warp) The value of another lane, for types of 4 bytes; a lane past the end (up: before the start) gets its own value.
template <class T> DEVICE T shuffle(T value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
template <class T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <class T> DEVICE T shuffle_down(T value, int n) { return __shfl_down_sync(0xffffffffu, value, n); }
template <class T> DEVICE T shuffle_up(T value, int n) { return __shfl_up_sync(0xffffffffu, value, n); }

// 2^x with a relative error of 2^-22; results below 2^-126 are 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

// With a relative error of 2^-11.
DEVICE float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to within 1 unit in the last place, for 2^-126 <= |x| <= 2^126.
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / sqrt(x) with a relative error of 2^-22.9.
DEVICE float reciprocal_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float bf16_to_float(unsigned short x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }

// Roundings are to the nearest, ties to even; NaN becomes 0x7fff. A pair has its first member in the low half.
#if __CUDA_ARCH__ >= 800
DEVICE unsigned pack_bf16(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE unsigned short float_to_bf16(float x) {
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

DEVICE unsigned pack_half(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
DEVICE unsigned short float_to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    return x == x ? static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) : 0x7fff;
}

DEVICE unsigned pack_bf16(float low, float high) {
    return float_to_bf16(low) | static_cast<unsigned>(float_to_bf16(high)) << 16;
}
#endif

DEVICE float half_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

DEVICE unsigned short float_to_half(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

#if __CUDA_ARCH__ < 800
DEVICE unsigned pack_half(float low, float high) {
    return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}
#endif

// 16 bytes, loaded and stored in one go; addresses are multiples of 16.
struct alignas(16) Vector4 {
    unsigned x, y, z, w;
};

// From global memory that nobody writes while the kernel runs.
DEVICE Vector4 load_16(const void* global) {
    Vector4 v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}

// The same for what is read once: it does not displace what the first-level cache holds.
DEVICE Vector4 load_16_streaming(const void* global) {
    Vector4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(global));
    return v;
}

// Asks for the 32 bytes around an address in the second-level cache.
DEVICE void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" : : "l"(global)); }

// The same number, of which the compiler no longer knows where it came from: what is computed from it again is computed
// again, where keeping the results would take registers.
template <class T> DEVICE T hide(T x) {
    asm volatile("" : "+r"(x));
    return x;
}

// To global memory. Assignments would do, but before sm_100 the compiler makes one for each number of them.
DEVICE void store_16(void* global, Vector4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

// The same for 8 bytes; the address is a multiple of 8.
DEVICE void store_8(void* global, float x, float y) {
    asm volatile("st.global.v2.f32 [%0], {%1, %2};" : : "l"(global), "f"(x), "f"(y) : "memory");
}

// c plus the products of the four signed bytes of a and b.
DEVICE int dot4_int8(int a, int b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

DEVICE void atomic_add(float* place, float value) { atomicAdd(place, value); }

DEVICE unsigned shared_address(const void* shared) { return static_cast<unsigned>(__cvta_generic_to_shared(shared)); }

// (warp) Matrices of 8 x 8 16-bit elements from shared memory. Lane 8 i + j holds the address of row j of matrix i, 16
// bytes that begin at a multiple of 16; lane l receives elements 2 (l % 4) and + 1 of row l / 4 of matrix i in r[i], the
// first in the low half. With _trans it receives the elements of column l / 4 in rows 2 (l % 4) and + 1. The x2 forms
// take addresses from lanes 0 to 15; on sm_75 the other lanes too must hold addresses that can be read.
DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

#if __CUDA_ARCH__ >= 800
// Rounded to tf32's 10 bits of mantissa, to the nearest, ties away from zero.
DEVICE unsigned round_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// (warp) D += A B with A 16 x 16, B 16 x 8, D 16 x 8, spread over the lanes; g = lane / 4, c = lane % 4:
//   a[0] row g,     columns 2c, 2c+1      b[0] rows 2c, 2c+1,     column g      d[0], d[1] row g,     columns 2c, 2c+1
//   a[1] row g + 8, columns 2c, 2c+1      b[1] rows 2c+8, 2c+9,   column g      d[2], d[3] row g + 8, columns 2c, 2c+1
//   a[2] row g,     columns 2c+8, 2c+9
//   a[3] row g + 8, columns 2c+8, 2c+9    (the first of two in the low half)
DEVICE void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// (warp) The same with fp16 operands.
DEVICE void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// (warp) D += A B with A 16 x 8, B 8 x 8, D 16 x 8, operands tf32 (the low 13 bits of an operand are not read):
//   a[0] row g,     column c          b[0] row c,     column g      d as above
//   a[1] row g + 8, column c          b[1] row c + 4, column g
//   a[2] row g,     column c + 4
//   a[3] row g + 8, column c + 4
DEVICE void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies 16 bytes to shared memory in the background; both addresses are multiples of 16. The copies a thread has
// started since its last commit form a group. copy_async_wait<N>() returns when all but the thread's latest N groups
// have arrived, for itself: other threads see them after a barrier that follows.
DEVICE void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(shared_address(shared)), "l"(global) : "memory");
}

// The same, but zeros where not `wanted`: then nothing is read.
DEVICE void copy_async_16_or_zero(void* shared, const void* global, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(wanted ? 16 : 0)
                 : "memory");
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory"); }
#endif

#endif
