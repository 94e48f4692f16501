// The recurrence for one token, with all that belongs to a head: decay, in-context learning rate (iclr), value
// residual, removal key (kappa), state, group norm, bonus and gate.
//
// B rows (sequences), D width, H heads, N head size, D = H N. Row b goes on from the state in slot slots[b] of a pool;
// a negative slot says that nobody is there, and the row is left out. Sums are fp32.
//
// Fixed when compiled: NUMBER, the type of the result (0 fp32, 1 bf16, 2 fp16); PRODUCT, the type that matrix products
// come in; STATE, the type that states are stored in (0 or 2); HEAD (N), 64 or 128.

#include "numbers.h"

constexpr int BLOCK = 256;
constexpr int KEYS = 16 / static_cast<int>(sizeof(Stored<STATE>));  // of a state's row that a lane holds
constexpr int LANES = HEAD / KEYS;                                  // that hold a row together
constexpr int ROWS = BLOCK / LANES;                                 // that the block holds at once
constexpr int PASSES = HEAD / ROWS;
constexpr float DECAY_FLOOR = -0.60653065971263342f;  // -exp(-0.5)
static_assert(LANES <= 32 && HEAD % ROWS == 0 && HEAD % 32 == 0, "");

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

    // What does not need the slot is loaded first.
    int channel = head * HEAD + t;
    long long at = static_cast<long long>(row) * width + channel, size = static_cast<long long>(batch) * width;
    float vector[8] = {}, r = 0.0f, k = 0.0f, v = 0.0f, v_of_first = 0.0f, low[4] = {};
    if (t < HEAD) {
        r = load<PRODUCT, 1>(products, at).x[0];
        k = load<PRODUCT, 1>(products, at + size).x[0];
        v = load<PRODUCT, 1>(products, at + 2 * size).x[0];
#pragma unroll
        for (int i = 0; i < 3; i++) low[i] = load<PRODUCT, 1>(low_rank, at + i * size).x[0];
        if (v_first) low[3] = load<PRODUCT, 1>(low_rank, at + 3 * size).x[0];
        if (v_first) v_of_first = load<PRODUCT, 1>(v_first, at).x[0];
#pragma unroll
        for (int i = 0; i < 8; i++) vector[i] = vectors[i * width + channel];
    }
    if (slot < 0) return;

    Stored<STATE>* state =
        static_cast<Stored<STATE>*>(pool) + (static_cast<long long>(slot) * grid_x() + head) * HEAD * HEAD;
    int first = t / LANES, key = t % LANES * KEYS;
    Packed<STATE, KEYS> held[PASSES];
#pragma unroll
    for (int p = 0; p < PASSES; p++)
        held[p] = *reinterpret_cast<const Packed<STATE, KEYS>*>(state + (first + p * ROWS) * HEAD + key);

    SHARED float r_[HEAD], w_[HEAD], k_[HEAD], v_[HEAD], a_[HEAD], b_[HEAD], y_[HEAD], square[HEAD], bonus[HEAD];
    float iclr = sigmoid(vector[A0] + low[1]), kappa = k * vector[K_K];
    if (t < HEAD) {
        if (v_first) v += (v_of_first - v) * sigmoid(vector[V0] + low[3]);
        k *= 1.0f + (iclr - 1.0f) * vector[K_A];
        r_[t] = r;
        k_[t] = k;
        v_[t] = v;
        w_[t] = exp_fast(DECAY_FLOOR * sigmoid(vector[W0] + low[0]));
        square[t] = kappa * kappa;
        bonus[t] = r * k * vector[R_K];
    }
    barrier();
    if (t < HEAD) {
        float squares = sum_head(square);
        kappa *= squares > 1e-24f ? reciprocal_root(squares) : 1e12f;
        a_[t] = -kappa;
        b_[t] = multiplier * iclr * kappa;
    }
    barrier();

    Floats<KEYS> rs, ws, ks, as, bs;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        rs.x[i] = r_[key + i];
        ws.x[i] = w_[key + i];
        ks.x[i] = k_[key + i];
        as.x[i] = a_[key + i];
        bs.x[i] = b_[key + i];
    }
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        int value = first + p * ROWS;
        float s[KEYS];
        float removed = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            s[i] = Number<STATE>::widen(held[p].x[i]);
            removed += s[i] * as.x[i];
        }
        removed = sum_lanes<LANES>(removed);
        float y = 0.0f;
#pragma unroll
        for (int i = 0; i < KEYS; i++) {
            s[i] = s[i] * ws.x[i] + removed * bs.x[i] + v_[value] * ks.x[i];
            held[p].x[i] = Number<STATE>::narrow(s[i]);
            y += s[i] * rs.x[i];
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
        float y = (y_[t] - mean) * scale * vector[LN_WEIGHT] + vector[LN_BIAS];
        Floats<1> result{{(y + sum_head(bonus) * v) * low[2]}};
        store<NUMBER, 1>(out, at, result);
    }
}
