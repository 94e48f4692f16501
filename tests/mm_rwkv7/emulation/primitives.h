// The functions of kernels/primitives.h for the host. The tests compile a kernel's file with g++ after this header, whose
// include guard keeps the file from taking the other one; runner.cpp runs the threads and does what lanes do together.
//
// A function here asserts what the GPU takes for granted: alignment, and that all lanes of a warp arrive at the same place.

#ifndef MM_RWKV7_PRIMITIVES_H
#define MM_RWKV7_PRIMITIVES_H

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <source_location>
#include <utility>

#define KERNEL(threads, min_blocks) extern "C"
#define DEVICE [[maybe_unused]] static inline
#define SHARED static __attribute__((section("block_shared"), aligned(16)))
#define DYNAMIC_SHARED(name) unsigned char* const name = emulation::dynamic_shared

#define __device__
#define __forceinline__ inline
#define __global__

using std::max;
using std::min;

namespace emulation {
using Where = std::source_location;

struct Index {
    int x, y, z;
};

extern int thread;                     // of the block, that runs now
extern Index block, grid;              // grid: its size
extern unsigned char* dynamic_shared;  // of the block

void fail(const char* what, Where where);  // does not return
void barrier(Where where);
void warp_barrier(Where where);
unsigned exchange(const char* what, unsigned value, int source, Where where);
const void* const* exchange_rows(const char* what, const void* row, Where where);  // of all lanes
enum class Operand { bf16, half, tf32 };
void mma(Operand operand, float* d, const unsigned* a, const unsigned* b, Where where);

struct Copy {
    void* shared;
    const void* global;
};
void start_copy(Copy copy);
void commit_copies();
bool arrived_copy(int groups_left, Copy& copy);  // takes the next copy that has to arrive

inline void aligned_16(const void* address, const char* what, Where where) {
    if (reinterpret_cast<std::uintptr_t>(address) % 16) fail(what, where);
}
}  // namespace emulation

DEVICE int thread_x() { return emulation::thread; }
DEVICE int block_x() { return emulation::block.x; }
DEVICE int block_y() { return emulation::block.y; }
DEVICE int block_z() { return emulation::block.z; }
DEVICE int grid_x() { return emulation::grid.x; }
DEVICE int grid_y() { return emulation::grid.y; }
DEVICE int grid_z() { return emulation::grid.z; }

DEVICE void barrier(emulation::Where where = emulation::Where::current()) { emulation::barrier(where); }
DEVICE void warp_barrier(emulation::Where where = emulation::Where::current()) { emulation::warp_barrier(where); }

template <class T> static inline T shuffle(T value, int lane, emulation::Where where = emulation::Where::current()) {
    return std::bit_cast<T>(emulation::exchange("shuffle", std::bit_cast<unsigned>(value), lane & 31, where));
}

template <class T> static inline T shuffle_xor(T value, int mask, emulation::Where where = emulation::Where::current()) {
    int lane = thread_x() % 32, source = lane ^ mask;
    if (mask < 0 || mask > 31) emulation::fail("shuffle_xor: the mask is not in 0 to 31", where);
    return std::bit_cast<T>(emulation::exchange("shuffle_xor", std::bit_cast<unsigned>(value), source, where));
}

template <class T> static inline T shuffle_down(T value, int n, emulation::Where where = emulation::Where::current()) {
    int lane = thread_x() % 32, source = lane + n < 32 ? lane + n : lane;
    return std::bit_cast<T>(emulation::exchange("shuffle_down", std::bit_cast<unsigned>(value), source, where));
}

template <class T> static inline T shuffle_up(T value, int n, emulation::Where where = emulation::Where::current()) {
    int lane = thread_x() % 32, source = lane - n >= 0 ? lane - n : lane;
    return std::bit_cast<T>(emulation::exchange("shuffle_up", std::bit_cast<unsigned>(value), source, where));
}

// The approximate instructions take and give 0 in place of subnormal numbers.
DEVICE float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
DEVICE float exp2_fast(float x) { return flushed(exp2f(x)); }
DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }
DEVICE float reciprocal(float x) { return flushed(1.0f / flushed(x)); }
DEVICE float reciprocal_root(float x) { return 1.0f / sqrtf(flushed(x)); }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// As coarse as the GPU's: 11 bits of mantissa are right.
DEVICE float tanh_fast(float x) {
    return std::bit_cast<float>((std::bit_cast<unsigned>(tanhf(x)) + 0x800u) & ~0xfffu);
}

DEVICE float bf16_to_float(unsigned short x) { return std::bit_cast<float>(static_cast<unsigned>(x) << 16); }

DEVICE unsigned short float_to_bf16(float x) {
    unsigned bits = std::bit_cast<unsigned>(x);
    return x == x ? static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) : 0x7fff;
}

DEVICE float half_to_float(unsigned short x) { return std::bit_cast<_Float16>(x); }

DEVICE unsigned short float_to_half(float x) {
    return x == x ? std::bit_cast<unsigned short>(static_cast<_Float16>(x)) : 0x7fff;
}

DEVICE unsigned pack_bf16(float low, float high) {
    return float_to_bf16(low) | static_cast<unsigned>(float_to_bf16(high)) << 16;
}

DEVICE unsigned pack_half(float low, float high) {
    return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}

DEVICE unsigned round_tf32(float x) {
    unsigned bits = std::bit_cast<unsigned>(x);
    return x == x && fabsf(x) != INFINITY ? (bits + 0x1000u) & ~0x1fffu : bits;
}

struct alignas(16) Vector4 {
    unsigned x, y, z, w;
};

DEVICE Vector4 load_16(const void* global, emulation::Where where = emulation::Where::current()) {
    emulation::aligned_16(global, "load_16: the address is not a multiple of 16", where);
    return *static_cast<const Vector4*>(global);
}

DEVICE Vector4 load_16_streaming(const void* global, emulation::Where where = emulation::Where::current()) {
    emulation::aligned_16(global, "load_16_streaming: the address is not a multiple of 16", where);
    return *static_cast<const Vector4*>(global);
}

DEVICE void prefetch(const void*) {}

template <class T> DEVICE T hide(T x) { return x; }

DEVICE void store_16(void* place, Vector4 v, emulation::Where where = emulation::Where::current()) {
    emulation::aligned_16(place, "store_16: the address is not a multiple of 16", where);
    *static_cast<Vector4*>(place) = v;
}

DEVICE void store_8(void* place, float x, float y, emulation::Where where = emulation::Where::current()) {
    if (reinterpret_cast<std::uintptr_t>(place) % 8) emulation::fail("store_8: the address is not a multiple of 8", where);
    static_cast<float*>(place)[0] = x;
    static_cast<float*>(place)[1] = y;
}

DEVICE int dot4_int8(int a, int b, int c) {
    for (int shift = 0; shift < 32; shift += 8) {
        c += static_cast<std::int8_t>(a >> shift) * static_cast<std::int8_t>(b >> shift);
    }
    return c;
}

DEVICE void atomic_add(float* place, float value) {
    float old = __builtin_bit_cast(float, __atomic_load_n(reinterpret_cast<unsigned*>(place), __ATOMIC_RELAXED));
    __atomic_store_n(reinterpret_cast<unsigned*>(place), std::bit_cast<unsigned>(old + value), __ATOMIC_RELAXED);
}

namespace emulation {
// Every lane reads its own elements, so that a sanitizer sees who reads what.
template <bool trans, int count>
void ldmatrix(const char* what, unsigned (&r)[count], const void* shared, Where where) {
    int lane = thread % 32, group = lane / 4, pair = lane % 4 * 2;
    if (lane < 8 * count) aligned_16(shared, "ldmatrix: the address of a row is not a multiple of 16", where);
    const void* const* rows = exchange_rows(what, shared, where);
    for (int i = 0; i < count; i++) {
        unsigned short element[2];
        for (int j = 0; j < 2; j++) {
            int row = trans ? pair + j : group, column = trans ? group : pair + j;
            element[j] = static_cast<const unsigned short*>(rows[8 * i + row])[column];
        }
        r[i] = element[0] | static_cast<unsigned>(element[1]) << 16;
    }
}
}  // namespace emulation

DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* shared, emulation::Where where = emulation::Where::current()) {
    emulation::ldmatrix<false>("ldmatrix_x4", r, shared, where);
}

DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared, emulation::Where where = emulation::Where::current()) {
    emulation::ldmatrix<true>("ldmatrix_x4_trans", r, shared, where);
}

DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* shared, emulation::Where where = emulation::Where::current()) {
    emulation::ldmatrix<false>("ldmatrix_x2", r, shared, where);
}

DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared, emulation::Where where = emulation::Where::current()) {
    emulation::ldmatrix<true>("ldmatrix_x2_trans", r, shared, where);
}

DEVICE void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     emulation::Where where = emulation::Where::current()) {
    emulation::mma(emulation::Operand::bf16, d, a, b, where);
}

DEVICE void mma_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     emulation::Where where = emulation::Where::current()) {
    emulation::mma(emulation::Operand::half, d, a, b, where);
}

DEVICE void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     emulation::Where where = emulation::Where::current()) {
    emulation::mma(emulation::Operand::tf32, d, a, b, where);
}

// A copy arrives as late as it may, when it is waited for; until then its place holds NaN.
DEVICE void copy_async_16_or_zero(void* shared, const void* global, bool wanted,
                                  emulation::Where where = emulation::Where::current()) {
    emulation::aligned_16(shared, "copy_async: the shared address is not a multiple of 16", where);
    emulation::aligned_16(global, "copy_async: the global address is not a multiple of 16", where);
    *static_cast<volatile std::uint64_t*>(shared) = ~std::uint64_t{0};
    static_cast<volatile std::uint64_t*>(shared)[1] = ~std::uint64_t{0};
    emulation::start_copy({shared, wanted ? global : nullptr});
}

DEVICE void copy_async_16(void* shared, const void* global, emulation::Where where = emulation::Where::current()) {
    copy_async_16_or_zero(shared, global, true, where);
}

DEVICE void copy_async_commit() { emulation::commit_copies(); }

template <int N> static inline void copy_async_wait() {
    for (emulation::Copy copy; emulation::arrived_copy(N, copy);) {
        *static_cast<Vector4*>(copy.shared) = copy.global ? *static_cast<const Vector4*>(copy.global) : Vector4{};
    }
}

namespace emulation {
template <class T> constexpr char letter = '?';  // what a pointer points to, or what is passed by value
template <> inline constexpr char letter<float> = 'f';
template <> inline constexpr char letter<int> = 'i';
template <> inline constexpr char letter<unsigned> = 'i';
template <> inline constexpr char letter<unsigned short> = 'h';
template <> inline constexpr char letter<signed char> = 'b';

template <class... P, std::size_t... i>
void unpack(void (*kernel)(P...), void** slots, std::index_sequence<i...>) {
    kernel(*static_cast<P*>(slots[i])...);
}

// Two letters for every parameter: 'p' and what it points to, or 'v' and what it is.
template <class... P> const char* signature(void (*)(P...)) {
    static const char text[] = {
        (std::is_pointer_v<P> ? 'p' : 'v')..., letter<std::remove_cv_t<std::remove_pointer_t<P>>>..., '\0'};
    return text;
}

struct Kernel {
    const char* name;
    void (*run)(void** slots);
    const char* signature;
    int most_threads;
};

template <class... P> void run(void (*kernel)(P...), void** slots) {
    unpack(kernel, slots, std::index_sequence_for<P...>{});
}
}  // namespace emulation

// An entry of `emulated_kernels`, which ends with an entry of zeros.
#define EMULATED(name, threads) \
    {#name, [](void** slots) { emulation::run(name, slots); }, emulation::signature(name), threads}
extern "C" const emulation::Kernel emulated_kernels[];

#endif
