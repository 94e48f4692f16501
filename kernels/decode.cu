// One token of RWKV-7, but for the matrix products: layer norms, token shifts, interpolations, and the recurrence with
// all that belongs to a head. kernels/matvec.cu holds the products; mm_rwkv7/ops/decode_cuda.py launches both.
//
// B rows (sequences), D width, H heads, N head size, D = H N. Row b goes on from the state in slot slots[b] of a pool; a
// negative slot says that nobody is there, and the row is left out. Sums are fp32.
//
// Fixed when compiled: NUMBER, the model's type (0 fp32, 1 bf16, 2 fp16); PRODUCT, the type that matrix products come
// in; STATE, the type that wkv states are stored in (0 or 2); WIDTH (D), HEAD (N), THREADS of the norms; MIXES, 6 before
// the time mix and 1 before the channel mix; PARTS, the blocks that share a row in `mix`.

#include "primitives.h"

template <int TYPE> struct Number {
    using Stored = unsigned short;
    DEVICE float widen(Stored x) { return TYPE == 1 ? bf16_to_float(x) : half_to_float(x); }
    DEVICE Stored narrow(float x) { return TYPE == 1 ? float_to_bf16(x) : float_to_half(x); }
};
template <> struct Number<0> {
    using Stored = float;
    DEVICE float widen(float x) { return x; }
    DEVICE float narrow(float x) { return x; }
};
template <int TYPE> using Stored = typename Number<TYPE>::Stored;

// COUNT neighbouring numbers in memory, moved in one go (COUNT a power of two, at most 16 bytes in all).
template <int TYPE, int COUNT> struct alignas(COUNT * sizeof(Stored<TYPE>)) Packed {
    Stored<TYPE> x[COUNT];
};

template <int COUNT> struct Floats {
    float x[COUNT];
};

template <int TYPE, int COUNT> DEVICE Floats<COUNT> load(const void* base, long long at) {
    Packed<TYPE, COUNT> packed = *reinterpret_cast<const Packed<TYPE, COUNT>*>(static_cast<const Stored<TYPE>*>(base) + at);
    Floats<COUNT> y;
#pragma unroll
    for (int i = 0; i < COUNT; i++) y.x[i] = Number<TYPE>::widen(packed.x[i]);
    return y;
}

template <int TYPE, int COUNT> DEVICE void store(void* base, long long at, const Floats<COUNT>& y) {
    Packed<TYPE, COUNT> packed;
#pragma unroll
    for (int i = 0; i < COUNT; i++) packed.x[i] = Number<TYPE>::narrow(y.x[i]);
    *reinterpret_cast<Packed<TYPE, COUNT>*>(static_cast<Stored<TYPE>*>(base) + at) = packed;
}

// (warp) The sum over groups of LANES neighbouring lanes, for each of them.
template <int LANES = 32> DEVICE float sum_lanes(float x) {
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

#ifdef THREADS  // ---- layer norms

constexpr float LAYER_EPS = 1e-5f;
constexpr int QUADS = WIDTH / 4;
constexpr int WARPS = THREADS / 32;
constexpr int HELD = (QUADS + THREADS - 1) / THREADS;  // quads of a row that a thread looks at

// The residual stream of all rows: x, plus what the last matrix product gave, in `count` parts that lie (count, B, D).
struct Stream {
    const float* x;
    const void* parts;
    int count, batch;

    DEVICE Floats<4> at(const Stream& s, int row, int quad) {
        Floats<4> sum = load<0, 4>(s.x, static_cast<long long>(row) * WIDTH + 4 * quad);
        for (int part = 0; part < s.count; part++) {
            Floats<4> more =
                load<PRODUCT, 4>(s.parts, (static_cast<long long>(part) * s.batch + row) * WIDTH + 4 * quad);
#pragma unroll
            for (int i = 0; i < 4; i++) sum.x[i] += more.x[i];
        }
        return sum;
    }
};

DEVICE float sum_block(float x, float* scratch) {
    x = sum_lanes(x);
    if (thread_x() % 32 == 0) scratch[thread_x() / 32] = x;
    barrier();
    int lane = thread_x() % 32;
    return sum_lanes(lane < WARPS ? scratch[lane] : 0.0f);
}

struct Moments {
    float mean, scale;
};

// Of one row, for every thread of the block.
DEVICE Moments moments(const Stream& stream, int row) {
    SHARED float scratch[2][32];
    Floats<4> held[HELD];
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int quad = thread_x() + j * THREADS;
        if (quad >= QUADS) continue;
        held[j] = Stream::at(stream, row, quad);
#pragma unroll
        for (int i = 0; i < 4; i++) sum += held[j].x[i];
    }
    float mean = sum_block(sum, scratch[0]) / WIDTH;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        if (thread_x() + j * THREADS >= QUADS) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) squares += (held[j].x[i] - mean) * (held[j].x[i] - mean);
    }
    return {mean, reciprocal_root(sum_block(squares, scratch[1]) / WIDTH + LAYER_EPS)};
}

DEVICE Floats<4> normalised(const Floats<4>& x, Moments m, const Floats<4>& weight, const Floats<4>& bias) {
    Floats<4> y;
#pragma unroll
    for (int i = 0; i < 4; i++) y.x[i] = (x.x[i] - m.mean) * m.scale * weight.x[i] + bias.x[i];
    return y;
}

// y = LN(stream), for ln0 as fp32 to `stream_out` and for ln_out in the model's type to `out`; either may be null.
// Grid (1, B).
KERNEL(THREADS, 1)
void normalise(const float* x, const void* parts, int count, int batch, const float* weight, const float* bias,
               float* stream_out, void* out) {
    int row = block_y();
    Stream stream{x, parts, count, batch};
    Moments m = moments(stream, row);
    for (int quad = thread_x(); quad < QUADS; quad += THREADS) {
        Floats<4> y = normalised(Stream::at(stream, row, quad), m, load<0, 4>(weight, 4 * quad), load<0, 4>(bias, 4 * quad));
        long long at = static_cast<long long>(row) * WIDTH + 4 * quad;
        if (stream_out) store<0, 4>(stream_out, at, y);
        if (out) store<NUMBER, 4>(out, at, y);
    }
}

#ifdef MIXES

constexpr int OWN_QUADS = QUADS / PARTS;
constexpr int OWN = (OWN_QUADS + THREADS - 1) / THREADS;
static_assert(QUADS % PARTS == 0, "");

// y = LN(stream); out[i] = y + (shift - y) mixes[i]; shift = y, y being rounded as shifts are stored.
// mixes (MIXES, D), shift (slots, D), out (MIXES, B, D). The summed stream goes to stream_out, which is not x: each of
// the PARTS blocks of a row reads all of the row, and writes its part. Grid (PARTS, B).
KERNEL(THREADS, 1)
void mix(const float* x, const void* parts, int count, int batch, float* stream_out, const float* weight,
         const float* bias, const float* mixes, void* shift, const int* slots, void* out) {
    int row = block_y();
    int slot = slots[row];
    if (slot < 0) return;
    Stream stream{x, parts, count, batch};
    // What does not wait for the moments is loaded first.
    Floats<4> scale[OWN], offset[OWN], before[OWN], share[OWN][MIXES];
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int own = thread_x() + j * THREADS;
        if (own >= OWN_QUADS) continue;
        int column = 4 * (block_x() * OWN_QUADS + own);
        before[j] = load<NUMBER, 4>(shift, static_cast<long long>(slot) * WIDTH + column);
        scale[j] = load<0, 4>(weight, column);
        offset[j] = load<0, 4>(bias, column);
#pragma unroll
        for (int i = 0; i < MIXES; i++) share[j][i] = load<0, 4>(mixes, i * WIDTH + column);
    }
    Moments m = moments(stream, row);
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int own = thread_x() + j * THREADS;
        if (own >= OWN_QUADS) continue;
        int quad = block_x() * OWN_QUADS + own;
        Floats<4> sum = Stream::at(stream, row, quad);
        Floats<4> y = normalised(sum, m, scale[j], offset[j]);
#pragma unroll
        for (int i = 0; i < 4; i++) y.x[i] = Number<NUMBER>::widen(Number<NUMBER>::narrow(y.x[i]));
        store<0, 4>(stream_out, static_cast<long long>(row) * WIDTH + 4 * quad, sum);
        store<NUMBER, 4>(shift, static_cast<long long>(slot) * WIDTH + 4 * quad, y);
#pragma unroll
        for (int i = 0; i < MIXES; i++) {
            Floats<4> mixed;
#pragma unroll
            for (int c = 0; c < 4; c++) mixed.x[c] = y.x[c] + (before[j].x[c] - y.x[c]) * share[j][i].x[c];
            store<NUMBER, 4>(out, (static_cast<long long>(i) * batch + row) * WIDTH + 4 * quad, mixed);
        }
    }
}

#endif
#endif

#ifdef HEAD  // ---- the recurrence

constexpr int BLOCK = 256;
constexpr int KEYS = 16 / static_cast<int>(sizeof(Stored<STATE>));  // of a state's row that a lane holds
constexpr int LANES = HEAD / KEYS;                                  // that hold a row together
constexpr int ROWS = BLOCK / LANES;                                 // that the block holds at once
constexpr int PASSES = HEAD / ROWS;
constexpr float DECAY_FLOOR = -0.60653065971263342f;  // -exp(-0.5)
static_assert(LANES <= 32 && HEAD % ROWS == 0 && HEAD % 32 == 0, "");

DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp_fast(-x)); }

// The sum of HEAD numbers in shared memory, for every lane of the warp that asks.
DEVICE float sum_head(const float* x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HEAD / 32; i++) sum += x[thread_x() % 32 + 32 * i];
    return sum_lanes(sum);
}

// Of a channel of the time mix, as they lie in `vectors` (8, D): the offsets of decay, in-context learning rate (iclr)
// and value residual, the factors of removal key and key, the bonus, weight and bias of ln_x.
enum Vector { W0, A0, V0, K_K, K_A, R_K, LN_WEIGHT, LN_BIAS };

// Everything of one head and row between the matrix products. products (3, B, D): r, k, v; low_rank (4, B, D): what the
// low-rank projections of decay, iclr, gate and value residual gave, without offsets; v_first (B, D): the first layer's
// v, null in that layer, whose low_rank has no fourth part.
//   w = exp(-exp(-0.5) sigmoid(w0 + .)), iclr = sigmoid(a0 + .), v += (v_first - v) sigmoid(v0 + .)
//   kappa = k k_k / |k k_k|, k *= 1 + (iclr - 1) k_a
//   S = S diag(w) - (S kappa) (multiplier iclr kappa)^T + v k^T, y = S r
//   out = (GroupNorm(y) + (sum r k r_k) v) gate
// pool (slots, H, N, N) as [value, key], changed in place. Grid (H, B).
KERNEL(BLOCK, 2)
void wkv(void* pool, const int* slots, const void* products, const void* low_rank, const void* v_first,
         const float* vectors, float multiplier, int batch, void* out) {
    int head = block_x(), row = block_y(), t = thread_x();
    int width = grid_x() * HEAD;
    int slot = slots[row];
    if (slot < 0) return;

    Stored<STATE>* state =
        static_cast<Stored<STATE>*>(pool) + (static_cast<long long>(slot) * grid_x() + head) * HEAD * HEAD;
    int first = t / LANES, key = t % LANES * KEYS;
    Packed<STATE, KEYS> held[PASSES];
#pragma unroll
    for (int p = 0; p < PASSES; p++)
        held[p] = *reinterpret_cast<const Packed<STATE, KEYS>*>(state + (first + p * ROWS) * HEAD + key);

    SHARED float r_[HEAD], w_[HEAD], k_[HEAD], v_[HEAD], a_[HEAD], b_[HEAD], y_[HEAD], square[HEAD], bonus[HEAD];
    int channel = head * HEAD + t;
    long long at = static_cast<long long>(row) * width + channel, size = static_cast<long long>(batch) * width;
    float v = 0.0f, gate = 0.0f, kappa = 0.0f, iclr = 0.0f;
    if (t < HEAD) {
        float r = load<PRODUCT, 1>(products, at).x[0];
        float k = load<PRODUCT, 1>(products, at + size).x[0];
        v = load<PRODUCT, 1>(products, at + 2 * size).x[0];
        float decay = vectors[W0 * width + channel] + load<PRODUCT, 1>(low_rank, at).x[0];
        iclr = sigmoid(vectors[A0 * width + channel] + load<PRODUCT, 1>(low_rank, at + size).x[0]);
        gate = load<PRODUCT, 1>(low_rank, at + 2 * size).x[0];
        if (v_first) {
            float share = sigmoid(vectors[V0 * width + channel] + load<PRODUCT, 1>(low_rank, at + 3 * size).x[0]);
            v += (load<PRODUCT, 1>(v_first, at).x[0] - v) * share;
        }
        kappa = k * vectors[K_K * width + channel];
        k *= 1.0f + (iclr - 1.0f) * vectors[K_A * width + channel];
        r_[t] = r;
        k_[t] = k;
        v_[t] = v;
        w_[t] = exp_fast(DECAY_FLOOR * sigmoid(decay));
        square[t] = kappa * kappa;
        bonus[t] = r * k * vectors[R_K * width + channel];
    }
    barrier();
    if (t < HEAD) {
        float squares = sum_head(square);
        kappa *= squares > 1e-24f ? reciprocal_root(squares) : 1e12f;
        a_[t] = -kappa;
        b_[t] = multiplier * iclr * kappa;
    }
    barrier();

    Floats<KEYS> r, w, k, a, b;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        r.x[i] = r_[key + i];
        w.x[i] = w_[key + i];
        k.x[i] = k_[key + i];
        a.x[i] = a_[key + i];
        b.x[i] = b_[key + i];
    }
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        int value = first + p * ROWS;
        float s[KEYS];
        float removed = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            s[i] = Number<STATE>::widen(held[p].x[i]);
            removed += s[i] * a.x[i];
        }
        removed = sum_lanes<LANES>(removed);
        float y = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            s[i] = s[i] * w.x[i] + removed * b.x[i] + v_[value] * k.x[i];
            held[p].x[i] = Number<STATE>::narrow(s[i]);
            y += s[i] * r.x[i];
        }
        *reinterpret_cast<Packed<STATE, KEYS>*>(state + value * HEAD + key) = held[p];
        y = sum_lanes<LANES>(y);
        if (key == 0) y_[value] = y;
    }
    barrier();

    if (t < HEAD) {
        float mean = sum_head(y_) / HEAD;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < HEAD / 32; i++) {
            float centred = y_[t % 32 + 32 * i] - mean;
            squares += centred * centred;
        }
        float scale = reciprocal_root(sum_lanes(squares) / HEAD + HEAD * 1e-5f);
        float y = (y_[t] - mean) * scale * vectors[LN_WEIGHT * width + channel] + vectors[LN_BIAS * width + channel];
        Floats<1> result{{(y + sum_head(bonus) * v) * gate}};
        store<NUMBER, 1>(out, at, result);
    }
}

#endif

// ---- for the products of more rows than kernels/matvec.cu takes, which give their results as they are

// numbers[0, tanh_end) = tanh, numbers[sigmoid_begin, count) = sigmoid, in place. Grid (count / 256, rounded up).
KERNEL(256, 1) void activate(void* numbers, int tanh_end, int sigmoid_begin, int count) {
    int i = block_x() * 256 + thread_x();
    if (i >= count || (i >= tanh_end && i < sigmoid_begin)) return;
    Floats<1> x = load<NUMBER, 1>(numbers, i);
    float half = reciprocal(1.0f + exp_fast(i < tanh_end ? -2.0f * x.x[0] : -x.x[0]));
    x.x[0] = i < tanh_end ? 2.0f * half - 1.0f : half;
    store<NUMBER, 1>(numbers, i, x);
}

// numbers = max(numbers, 0)^2, in place. Grid (count / 1024, rounded up); count is a multiple of 4.
KERNEL(256, 1) void square_positive(void* numbers, int count) {
    int i = 4 * (block_x() * 256 + thread_x());
    if (i >= count) return;
    Floats<4> x = load<NUMBER, 4>(numbers, i);
#pragma unroll
    for (int c = 0; c < 4; c++) x.x[c] = x.x[c] < 0.0f ? 0.0f : x.x[c] * x.x[c];
    store<NUMBER, 4>(numbers, i, x);
}
