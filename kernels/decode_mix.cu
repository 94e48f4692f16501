// Layer norms, token shifts and interpolations of one token of RWKV-7, between its matrix products.
//
// B rows (sequences), D width. Row b goes on from the shifts in slot slots[b] of a pool; a negative slot says that
// nobody is there, and the row is left out. Sums are fp32.
//
// Fixed when compiled: NUMBER, the model's type (0 fp32, 1 bf16, 2 fp16); PRODUCT, the type that matrix products come
// in; WIDTH (D), a multiple of 4; THREADS; MIXES, 6 before the time mix and 1 before the channel mix; PARTS, the
// blocks that share a row in `mix`, a divisor of WIDTH / 4.

#include "numbers.h"

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

// Of one row, for every thread of the block; the row itself comes to lie in `kept`, shared memory.
DEVICE Moments moments(const Stream& stream, int row, float* kept) {
    SHARED float scratch[2][32];
    Floats<4> held[HELD];
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        int quad = thread_x() + j * THREADS;
        if (quad >= QUADS) continue;
        held[j] = Stream::at(stream, row, quad);
        store<0, 4>(kept, 4 * quad, held[j]);
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
    SHARED float kept[WIDTH];
    int row = block_y();
    Moments m = moments(Stream{x, parts, count, batch}, row, kept);
    for (int quad = thread_x(); quad < QUADS; quad += THREADS) {
        Floats<4> scale = load<0, 4>(weight, 4 * quad), offset = load<0, 4>(bias, 4 * quad);
        Floats<4> y = normalised(load<0, 4>(kept, 4 * quad), m, scale, offset);
        long long at = static_cast<long long>(row) * WIDTH + 4 * quad;
        if (stream_out) store<0, 4>(stream_out, at, y);
        if (out) store<NUMBER, 4>(out, at, y);
    }
}

constexpr int OWN_QUADS = QUADS / PARTS;
constexpr int OWN = (OWN_QUADS + THREADS - 1) / THREADS;
static_assert(QUADS % PARTS == 0, "");

// y = LN(stream); out[i] = y + (shift - y) mixes[i]; shift = y, y being rounded as shifts are stored.
// mixes (MIXES, D), shift (slots, D), out (MIXES, B, D). The summed stream goes to stream_out, which is not x: each of
// the PARTS blocks of a row reads all of the row, and writes its part. Grid (PARTS, B).
KERNEL(THREADS, 1)
void mix(const float* x, const void* parts, int count, int batch, float* stream_out, const float* weight,
         const float* bias, const float* mixes, void* shift, const int* slots, void* out) {
    SHARED float kept[WIDTH];
    int row = block_y();
    int slot = slots[row];
    // What does not wait for the moments is loaded first, and what needs the slot last.
    Floats<4> scale[OWN], offset[OWN], before[OWN], share[OWN][MIXES];
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int own = thread_x() + j * THREADS;
        if (own >= OWN_QUADS) continue;
        int column = 4 * (block_x() * OWN_QUADS + own);
        scale[j] = load<0, 4>(weight, column);
        offset[j] = load<0, 4>(bias, column);
#pragma unroll
        for (int i = 0; i < MIXES; i++) share[j][i] = load<0, 4>(mixes, i * WIDTH + column);
        if (slot >= 0) before[j] = load<NUMBER, 4>(shift, static_cast<long long>(slot) * WIDTH + column);
    }
    Moments m = moments(Stream{x, parts, count, batch}, row, kept);
    if (slot < 0) return;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int own = thread_x() + j * THREADS;
        if (own >= OWN_QUADS) continue;
        int quad = block_x() * OWN_QUADS + own;
        Floats<4> sum = load<0, 4>(kept, 4 * quad);
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
