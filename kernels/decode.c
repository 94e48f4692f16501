/* RWKV-7, one token at a time, on a CPU: the whole model in one call.
 *
 * Letters: B rows (at most 8), D width, H heads, N head size, F width of the channel mix, R rank, V vocabulary.
 *
 * What bounds a step is reading every weight once. So weights are read where torch holds them, in the type that they
 * have there, each once for all rows; threads read long contiguous pieces; and a layer is five stages (stages.h), between
 * which threads wait for one another:
 *
 *   1  ln1, token shift, six interpolations (each thread for itself: they are few); r, k, v and the low ranks' way down
 *   2  a head: the low ranks' way up, kappa, learning rate, value residual, WKV, ln_x, bonus, gate
 *   3  the output product, added to x
 *   4  ln2, token shift, interpolation; the key product, squared ReLU
 *   5  the value product, added to x
 *
 * Vectors and state are fp32. Vector types are GCC's and clang's; no instruction is named.
 */
#include "stages.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { W = 16 }; /* floats in a vector */
#elif defined(__AVX__)
enum { W = 8 };
#else
enum { W = 4 };
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef float Quarter __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { ROWS = 8, GROUP = 64, LINE = 64, AHEAD = 8192 };
enum { FP32, BF16, FP16, INT8 };
static const int element_bytes[] = {4, 2, 2, 1};

/* The tensors of a layer, in the order that they are passed in; then those around the layers. */
enum {
    LN1_WEIGHT, LN1_BIAS, X_R, X_W, X_K, X_V, X_A, X_G, RECEPTANCE, KEY, VALUE, OUTPUT,
    W0, W1, W2, A0, A1, A2, V0, V1, V2, G1, G2, K_K, K_A, R_K, LN_X_WEIGHT, LN_X_BIAS,
    LN2_WEIGHT, LN2_BIAS, FFN_X, FFN_KEY, FFN_VALUE, LAYER_TENSORS
};
enum { LN0_WEIGHT, LN0_BIAS, LN_OUT_WEIGHT, LN_OUT_BIAS };

/* A tensor. An int8 row is filled up with zeros to groups of 64, each with a bf16 scale. Weight 16 j + i of a group is its
 * byte 4 i + j, so that a vector of 4-byte lanes gives four vectors of neighbours by shifts. */
typedef struct {
    const void *data;
    const uint16_t *scales;
    int32_t type, reserved;
} Tensor;

typedef struct {
    int32_t layers, width, heads, hidden, decay_rank, iclr_rank, value_rank, gate_rank;
    float iclr_multiplier, eps;
    const Tensor *tensors; /* [layers][LAYER_TENSORS], then the four around them */
} Model;

typedef struct {
    const float *wkv, *att_shift, *ffn_shift; /* (B, H, N, N) [value, key], (B, D), (B, D) */
} LayerState;

/* ---------------------------------------------------------------- numbers */

INLINE Vec splat(float x) { return x - (Vec){0}; }

INLINE Vec choose(Ints where, Vec yes, Vec no) { return (Vec)((where & (Ints)yes) | (~where & (Ints)no)); }

INLINE Vec load_fp32(const float *p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, Vec v) { memcpy(p, &v, sizeof v); }

INLINE float bf16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

/* W elements from the i-th on, as fp32. Compilers split this conversion when vectors are 64 bytes long. */
INLINE Vec load(int type, const void *data, size_t i) {
    if (type == FP32) return load_fp32((const float *)data + i);
    const uint16_t *place = (const uint16_t *)data + i;
#if defined(__AVX512F__)
    const __m256i halves = _mm256_loadu_si256((const __m256i *)place);
    if (type == FP16) return (Vec)_mm512_cvtph_ps(halves);
    return (Vec)((Bits)_mm512_cvtepu16_epi32(halves) << 16);
#else
    Halves halves;
    memcpy(&halves, place, sizeof halves);
    const Bits bits = __builtin_convertvector(halves, Bits);
    if (type == BF16) return (Vec)(bits << 16);
    const Vec magnitude = (Vec)((bits & 0x7fff) << 13) * 0x1p112f; /* moves the exponent, which subnormals survive */
    return (Vec)((Bits)magnitude | (bits & 0x8000) << 16);
#endif
}

/* W weights of an int8 group from the j-th on, as fp32: byte j / 16 of each 4-byte lane (see GROUP). */
INLINE Vec load_int8(const void *group, int j) {
    const int byte = j / (GROUP / 4), lane = j % (GROUP / 4);
    Ints lanes;
    memcpy(&lanes, (const int32_t *)group + lane, sizeof lanes);
#if defined(__AVX512F__)
    __asm__("" : "+v"(lanes)); /* or GCC reads them from memory again for each byte */
#endif
    return __builtin_convertvector((Ints)((Bits)lanes << (24 - 8 * byte)) >> 24, Vec);
}

/* A bf16 number in every lane. */
INLINE Vec load_scale(const uint16_t *place) {
#if defined(__AVX512BW__)
    return (Vec)_mm512_slli_epi32(_mm512_set1_epi16((short)*place), 16);
#else
    return splat(bf16(*place));
#endif
}

INLINE float load_one(int type, const void *data, size_t i) {
    if (type == FP32) return ((const float *)data)[i];
    const uint16_t bits = ((const uint16_t *)data)[i];
    if (type == BF16) return bf16(bits);
    const float magnitude = ldexpf((float)(bits & 0x3ff) + (bits & 0x7c00 ? 1024.0f : 0.0f),
                                   (bits & 0x7c00 ? (bits >> 10 & 31) : 1) - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

INLINE float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    Quarter quarters[W / 4];
    memcpy(quarters, &v, sizeof quarters);
    for (int i = 1; i < W / 4; i++) quarters[0] += quarters[i];
    return (quarters[0][0] + quarters[0][1]) + (quarters[0][2] + quarters[0][3]);
#endif
}

/* e^x to 2 in 10^7, for |x| < 87; beyond, the nearest that it can say. */
INLINE Vec exp_vec(Vec x) {
    x = choose(x < -87.0f, splat(-87.0f), x);
    x = choose(x > 87.0f, splat(87.0f), x);
    const Vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to an integer */
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Vec)((__builtin_convertvector(n, Ints) + 127) << 23);
}

INLINE Vec sigmoid_vec(Vec x) { return 1.0f / (1.0f + exp_vec(-x)); }

/* Applies `formula`, which says what becomes of W numbers `v`, to n numbers in place; the last ones through a copy. */
#define EACH(numbers, n, formula)                                        \
    do {                                                                 \
        for (int at_ = 0; at_ < (n); at_ += W) {                         \
            const int left_ = (n)-at_ < W ? (n)-at_ : W;                 \
            Vec v = {0};                                                 \
            memcpy(&v, (numbers) + at_, (size_t)left_ * sizeof(float));  \
            v = formula;                                                 \
            memcpy((numbers) + at_, &v, (size_t)left_ * sizeof(float));  \
        }                                                                \
    } while (0)

/* n elements of a tensor from the i-th on, as fp32. */
static void expand(const Tensor *tensor, size_t i, int n, float *out) {
    int j = 0;
    for (; j + W <= n; j += W) store(out + j, load(tensor->type, tensor->data, i + j));
    for (; j < n; j++) out[j] = load_one(tensor->type, tensor->data, i + j);
}

INLINE float dot(const float *a, const float *b, int n) {
    Vec total = {0};
    int i = 0;
    for (; i + W <= n; i += W) total += load_fp32(a + i) * load_fp32(b + i);
    float s = sum(total);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

static void layer_norm(const float *x, const Tensor *weight, const Tensor *bias, int n, float eps, float *out) {
    Vec total = {0}, squares = {0};
    float mean = 0, variance = 0;
    int i = 0;
    for (; i + W <= n; i += W) total += load_fp32(x + i);
    for (; i < n; i++) mean += x[i];
    mean = (mean + sum(total)) / n;
    for (i = 0; i + W <= n; i += W) {
        const Vec centred = load_fp32(x + i) - mean;
        squares += centred * centred;
    }
    for (; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / sqrtf((variance + sum(squares)) / n + eps);
    for (i = 0; i + W <= n; i += W)
        store(out + i, (load_fp32(x + i) - mean) * scale * load(weight->type, weight->data, i) +
                           load(bias->type, bias->data, i));
    for (; i < n; i++)
        out[i] = (x[i] - mean) * scale * load_one(weight->type, weight->data, i) + load_one(bias->type, bias->data, i);
}

/* ---------------------------------------------------------------- products */

enum { PLAIN, ADD, SQUARED_RELU, TANH, SIGMOID }; /* what becomes of a product */

/* Results of rows [from, to) of a matrix (rows, n), times B vectors x. `down` is the other layout, (n, rows). */
typedef struct {
    const Tensor *tensor;
    const float *x; /* B vectors, x_stride apart */
    float *out;     /* B vectors, out_stride apart */
    int x_stride, out_stride, n, rows, finish, down;
    int chunk_rows, first_chunk;
} Product;

INLINE void finish_one(float *out, float y, int finish) {
    if (finish == ADD) y += *out;
    if (finish == SQUARED_RELU) y = y < 0 ? 0 : y * y; /* NaN stays */
    *out = y;
}

/* Asks for the line that lies AHEAD of a place. Rows lie one after another, so this is what comes next. */
#define FETCH_AHEAD(place) __builtin_prefetch((const char *)(place) + AHEAD)

/* One row of a matrix against B vectors: every weight is read and made fp32 once. One stream of memory is faster than
 * several rows at a time. */
INLINE void one_row(int type, const Product *p, int row, int B) {
    const size_t stride = type == INT8 ? (size_t)(p->n + GROUP - 1) / GROUP * GROUP : (size_t)p->n;
    const char *data = (const char *)p->tensor->data + (size_t)row * stride * element_bytes[type];
    Vec total[ROWS][2]; /* two, or each product would wait for the one before */
    UNROLL for (int b = 0; b < B; b++) total[b][0] = total[b][1] = (Vec){0};
    int i = 0;
    if (type == INT8) {
        const uint16_t *scales = p->tensor->scales + (size_t)row * (stride / GROUP);
        for (; i < (int)stride; i += GROUP) {
            Vec part[ROWS];
            FETCH_AHEAD(data + i);
            UNROLL for (int b = 0; b < B; b++) part[b] = (Vec){0};
            UNROLL for (int j = 0; j < GROUP; j += W) {
                const Vec weight = load_int8(data + i, j);
                UNROLL for (int b = 0; b < B; b++) part[b] += weight * load_fp32(p->x + b * p->x_stride + i + j);
            }
            const Vec scale = load_scale(scales + i / GROUP);
            UNROLL for (int b = 0; b < B; b++) total[b][0] += part[b] * scale;
        }
    } else {
        const int step = LINE / element_bytes[type];
        for (; i + 2 * step <= p->n; i += 2 * step) {
            FETCH_AHEAD(data + i * element_bytes[type]);
            FETCH_AHEAD(data + (i + step) * element_bytes[type]);
            UNROLL for (int j = 0; j < 2 * step; j += W) {
                const Vec weight = load(type, data, i + j);
                UNROLL for (int b = 0; b < B; b++)
                    total[b][j / W % 2] += weight * load_fp32(p->x + b * p->x_stride + i + j);
            }
        }
    }
    UNROLL for (int b = 0; b < B; b++) {
        float y = sum(total[b][0] + total[b][1]);
        for (int j = i; j < p->n; j++) y += load_one(type, data, j) * p->x[b * p->x_stride + j];
        finish_one(p->out + (size_t)b * p->out_stride + row, y, p->finish);
    }
}

INLINE void rows_of(int type, const Product *p, int from, int to, int B) {
    for (int row = from; row < to; row++) one_row(type, p, row, B);
}

#define ROWS_OF(type)                                         \
    switch (B) {                                              \
        case 1: rows_of(type, p, from, to, 1); break;         \
        case 2: rows_of(type, p, from, to, 2); break;         \
        case 3: rows_of(type, p, from, to, 3); break;         \
        case 4: rows_of(type, p, from, to, 4); break;         \
        case 5: rows_of(type, p, from, to, 5); break;         \
        case 6: rows_of(type, p, from, to, 6); break;         \
        case 7: rows_of(type, p, from, to, 7); break;         \
        default: rows_of(type, p, from, to, 8);               \
    }

static void rows_fp32(const Product *p, int from, int to, int B) { ROWS_OF(FP32) }
static void rows_bf16(const Product *p, int from, int to, int B) { ROWS_OF(BF16) }
static void rows_fp16(const Product *p, int from, int to, int B) { ROWS_OF(FP16) }
static void rows_int8(const Product *p, int from, int to, int B) { ROWS_OF(INT8) }

/* out (n) = x (R) times columns [from, from + n) of a matrix (R, columns), for one vector x. */
INLINE void columns_typed(int type, const void *data, int R, int columns, int from, int n, const float *x, float *out) {
    enum { ROWS_AHEAD = 16 };
    int j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        Vec total[2][4] = {{{0}}};
        int i = 0;
        for (; i + 2 <= R; i += 2)
            UNROLL for (int odd = 0; odd < 2; odd++) {
                const size_t at = (size_t)(i + odd) * columns + from + j;
                const char *ahead = (const char *)data + (at + (size_t)ROWS_AHEAD * columns) * element_bytes[type];
                UNROLL for (int byte = 0; byte < 4 * W * element_bytes[type]; byte += LINE) __builtin_prefetch(ahead + byte);
                UNROLL for (int u = 0; u < 4; u++) total[odd][u] += load(type, data, at + u * W) * x[i + odd];
            }
        for (; i < R; i++)
            UNROLL for (int u = 0; u < 4; u++)
                total[0][u] += load(type, data, (size_t)i * columns + from + j + u * W) * x[i];
        UNROLL for (int u = 0; u < 4; u++) store(out + j + u * W, total[0][u] + total[1][u]);
    }
    for (; j + W <= n; j += W) {
        Vec total = {0};
        for (int i = 0; i < R; i++) total += load(type, data, (size_t)i * columns + from + j) * x[i];
        store(out + j, total);
    }
    for (; j < n; j++) {
        float total = 0;
        for (int i = 0; i < R; i++) total += load_one(type, data, (size_t)i * columns + from + j) * x[i];
        out[j] = total;
    }
}

static void columns_of(const Tensor *t, int R, int columns, int from, int n, const float *x, float *out) {
    switch (t->type) {
        case FP32: columns_typed(FP32, t->data, R, columns, from, n, x, out); break;
        case BF16: columns_typed(BF16, t->data, R, columns, from, n, x, out); break;
        default: columns_typed(FP16, t->data, R, columns, from, n, x, out);
    }
}

static void multiply(const Product *p, int chunk, int B) {
    const int from = (chunk - p->first_chunk) * p->chunk_rows;
    const int to = from + p->chunk_rows < p->rows ? from + p->chunk_rows : p->rows;
    if (!p->down) {
        switch (p->tensor->type) {
            case FP32: rows_fp32(p, from, to, B); break;
            case BF16: rows_bf16(p, from, to, B); break;
            case FP16: rows_fp16(p, from, to, B); break;
            default: rows_int8(p, from, to, B);
        }
        return;
    }
    for (int b = 0; b < B; b++) {
        float *out = p->out + (size_t)b * p->out_stride + from;
        columns_of(p->tensor, p->n, p->rows, from, to - from, p->x + b * p->x_stride, out);
        if (p->finish == TANH)
            for (int i = 0; i < to - from; i++) out[i] = tanhf(out[i]);
        if (p->finish == SIGMOID) EACH(out, to - from, sigmoid_vec(v));
    }
}

/* ---------------------------------------------------------------- a stage */

typedef struct {
    Product products[8];
    int count, chunks;
} Stage;

enum { CHUNK_BYTES = 24576, DOWN_COLUMNS = 64 };

static void add_product(Stage *stage, const Tensor *tensor, int rows, int n, const float *x, int x_stride, float *out,
                        int out_stride, int finish, int down) {
    int chunk_rows = down ? DOWN_COLUMNS : CHUNK_BYTES / (n * element_bytes[tensor->type]) / 4 * 4;
    if (chunk_rows < 4) chunk_rows = 4;
    stage->products[stage->count++] =
        (Product){tensor, x, out, x_stride, out_stride, n, rows, finish, down, chunk_rows, stage->chunks};
    stage->chunks += (rows + chunk_rows - 1) / chunk_rows;
}

static void run_product(const Stage *stage, int chunk, int B) {
    int i = stage->count - 1;
    while (stage->products[i].first_chunk > chunk) i--;
    multiply(&stage->products[i], chunk, B);
}

/* ---------------------------------------------------------------- a step */

typedef struct {
    struct stages stages;
    const Model *model;
    const LayerState *before; /* [layers] */
    const int32_t *slots;     /* (B,): where a row's state lies in `before` and `wkv` */
    float *wkv, *shifts;      /* what comes after: (layers, slot_count, H, N, N), (layers, 2, B, D) */
    size_t slot_count;
    float *hidden;            /* (B, D) */
    int B, stride;   /* stride: D, or F, filled up to a multiple of 64 */
    float *x;                 /* (B, D): the sum that goes through the layers */
    float *r, *k, *v, *v_first, *z;
    float *down[4];  /* decay, iclr, gate, value: (B, R) */
    float *squared;  /* (B, F filled up to a multiple of 64) */
    float *mine;     /* of each thread: six (B, D), then the scratch of a head */
    size_t mine_size;
} Step;

enum { DECAY, ICLR, GATE, RESIDUAL };
enum { STAGES = 5 };

static const Tensor *tensor_of(const Step *s, int layer, int name) {
    return s->model->tensors + (size_t)layer * LAYER_TENSORS + name;
}

static int padded(int n) { return (n + GROUP - 1) / GROUP * GROUP; }

/* What a thread needs before a chunk of stage 1 or 4: norm and interpolations, in buffers of its own. */
static void prepare(const Step *s, int layer, int kind, float *mine) {
    const int D = s->model->width, names[] = {X_R, X_K, X_V, X_W, X_A, X_G};
    const size_t each = (size_t)s->B * s->stride;
    float *normed = mine + 6 * each;
    const float *shift = kind == 0 ? s->before[layer].att_shift : s->before[layer].ffn_shift;
    for (int b = 0; b < s->B; b++) {
        layer_norm(s->x + (size_t)b * D, tensor_of(s, layer, kind == 0 ? LN1_WEIGHT : LN2_WEIGHT),
                   tensor_of(s, layer, kind == 0 ? LN1_BIAS : LN2_BIAS), D, s->model->eps, normed + (size_t)b * D);
        const float *x = normed + (size_t)b * D, *previous = shift + (size_t)s->slots[b] * D;
        for (int m = 0; m < (kind == 0 ? 6 : 1); m++) {
            const Tensor *mix = tensor_of(s, layer, kind == 0 ? names[m] : FFN_X);
            float *out = mine + m * each + (size_t)b * s->stride;
            int i = 0;
            for (; i + W <= D; i += W) {
                const Vec here = load_fp32(x + i);
                store(out + i, here + (load_fp32(previous + i) - here) * load(mix->type, mix->data, i));
            }
            for (; i < D; i++) out[i] = x[i] + (previous[i] - x[i]) * load_one(mix->type, mix->data, i);
            for (; i < s->stride; i++) out[i] = 0;
        }
    }
}

static void describe(const Step *s, int layer, int kind, float *mine, Stage *stage) {
    const Model *m = s->model;
    const int D = m->width, S = s->stride, F = padded(m->hidden);
    const size_t each = (size_t)s->B * S;
    stage->count = stage->chunks = 0;
    switch (kind) {
        case 0:
            add_product(stage, tensor_of(s, layer, RECEPTANCE), D, D, mine, S, s->r, D, PLAIN, 0);
            add_product(stage, tensor_of(s, layer, KEY), D, D, mine + each, S, s->k, D, PLAIN, 0);
            add_product(stage, tensor_of(s, layer, VALUE), D, D, mine + 2 * each, S, s->v, D, PLAIN, 0);
            add_product(stage, tensor_of(s, layer, W1), m->decay_rank, D, mine + 3 * each, S, s->down[DECAY], m->decay_rank, TANH, 1);
            add_product(stage, tensor_of(s, layer, A1), m->iclr_rank, D, mine + 4 * each, S, s->down[ICLR], m->iclr_rank, PLAIN, 1);
            add_product(stage, tensor_of(s, layer, G1), m->gate_rank, D, mine + 5 * each, S, s->down[GATE], m->gate_rank, SIGMOID, 1);
            if (layer)
                add_product(stage, tensor_of(s, layer, V1), m->value_rank, D, mine + 2 * each, S, s->down[RESIDUAL], m->value_rank, PLAIN, 1);
            break;
        case 1: stage->chunks = m->heads; break;
        case 2: add_product(stage, tensor_of(s, layer, OUTPUT), D, D, s->z, S, s->x, D, ADD, 0); break;
        case 3: add_product(stage, tensor_of(s, layer, FFN_KEY), m->hidden, D, mine, S, s->squared, F, SQUARED_RELU, 0); break;
        default: add_product(stage, tensor_of(s, layer, FFN_VALUE), D, m->hidden, s->squared, F, s->x, D, ADD, 0);
    }
}

/* S' = S diag(w) + (S a) b^T + v k^T and y = S' r, for one head: S (N, N) as [value, key]. */
INLINE void wkv_rows(int N, const float *S, float *after, const float *w, const float *a, const float *b, const float *k,
                     const float *v, const float *r, float *y) {
    for (int i = 0; i < N; i++) {
        const float *row = S + (size_t)i * N;
        float *out = after + (size_t)i * N;
        const float removed = dot(row, a, N);
        Vec total = {0};
        float rest = 0;
        int j = 0;
        for (; j + W <= N; j += W) {
            const Vec next = load_fp32(row + j) * load_fp32(w + j) + removed * load_fp32(b + j) + v[i] * load_fp32(k + j);
            total += next * load_fp32(r + j);
            store(out + j, next);
        }
        for (; j < N; j++) {
            out[j] = row[j] * w[j] + removed * b[j] + v[i] * k[j];
            rest += out[j] * r[j];
        }
        y[i] = sum(total) + rest;
    }
}

static void run_head(const Step *s, int layer, int head, float *scratch) {
    const Model *m = s->model;
    const int D = m->width, N = D / m->heads, from = head * N;
    const int ranks[] = {m->decay_rank, m->iclr_rank, m->gate_rank, m->value_rank}, ups[] = {W2, A2, G2, V2};
    float *w = scratch, *iclr = w + N, *gate = iclr + N, *mix = gate + N, *a = mix + N, *b = a + N, *y = b + N,
          *vector = y + N;
    float *up[] = {w, iclr, gate, mix};
    for (int row = 0; row < s->B; row++) {
        const size_t at = (size_t)row * D + from;
        float *r = s->r + at, *k = s->k + at, *v = s->v + at, *z = s->z + (size_t)row * s->stride + from;
        for (int i = 0; i < (layer ? 4 : 3); i++)
            columns_of(tensor_of(s, layer, ups[i]), ranks[i], D, from, N, s->down[i] + (size_t)row * ranks[i], up[i]);

        expand(tensor_of(s, layer, W0), from, N, vector);
        for (int i = 0; i < N; i++) w[i] += vector[i];
        EACH(w, N, exp_vec(-0.60653066f * sigmoid_vec(v)));
        expand(tensor_of(s, layer, A0), from, N, vector);
        for (int i = 0; i < N; i++) iclr[i] += vector[i];
        EACH(iclr, N, sigmoid_vec(v));
        if (layer) {
            expand(tensor_of(s, layer, V0), from, N, vector);
            for (int i = 0; i < N; i++) mix[i] += vector[i];
            EACH(mix, N, sigmoid_vec(v));
            for (int i = 0; i < N; i++) v[i] += (s->v_first[at + i] - v[i]) * mix[i];
        } else {
            memcpy(s->v_first + at, v, N * sizeof(float));
        }
        expand(tensor_of(s, layer, K_K), from, N, vector);
        for (int i = 0; i < N; i++) a[i] = k[i] * vector[i]; /* kappa, before its length becomes 1 */
        const float length = sqrtf(dot(a, a, N)), scale = 1 / (length > 1e-12f ? length : 1e-12f);
        expand(tensor_of(s, layer, K_A), from, N, vector);
        for (int i = 0; i < N; i++) {
            b[i] = a[i] * scale * iclr[i] * m->iclr_multiplier;
            a[i] *= -scale;
            k[i] *= 1 + (iclr[i] - 1) * vector[i];
        }

        const size_t square = (size_t)N * N, place = (size_t)s->slots[row] * m->heads + head;
        const float *before = s->before[layer].wkv + place * square;
        float *after = s->wkv + ((size_t)layer * s->slot_count * m->heads + place) * square;
        switch (N) {
            case 64: wkv_rows(64, before, after, w, a, b, k, v, r, y); break;
            case 128: wkv_rows(128, before, after, w, a, b, k, v, r, y); break;
            default: wkv_rows(N, before, after, w, a, b, k, v, r, y);
        }

        expand(tensor_of(s, layer, R_K), from, N, vector);
        for (int i = 0; i < N; i++) vector[i] *= k[i];
        const float bonus = dot(r, vector, N);
        Tensor weight = *tensor_of(s, layer, LN_X_WEIGHT), bias = *tensor_of(s, layer, LN_X_BIAS);
        weight.data = (const char *)weight.data + (size_t)from * element_bytes[weight.type];
        bias.data = (const char *)bias.data + (size_t)from * element_bytes[bias.type];
        layer_norm(y, &weight, &bias, N, N * 1e-5f, z);
        for (int i = 0; i < N; i++) z[i] = (z[i] + bonus * v[i]) * gate[i];
    }
}

/* Asks for the beginning of what this thread reads next, while it waits for the others. */
static void fetch_ahead(const Stage *stage, int thread, int threads) {
    enum { BYTES = 8192 };
    const int chunk = (int)((int64_t)stage->chunks * thread / threads);
    if (!stage->count) return;
    int i = stage->count - 1;
    while (stage->products[i].first_chunk > chunk) i--;
    const Product *p = &stage->products[i];
    if (p->down) return;
    const char *data = (const char *)p->tensor->data +
                       (size_t)(chunk - p->first_chunk) * p->chunk_rows * p->n * element_bytes[p->tensor->type];
    for (int at = 0; at < BYTES; at += LINE) __builtin_prefetch(data + at, 0, 2);
}

static void work(void *job, int thread) {
    Step *s = job;
    const Model *m = s->model;
    const int D = m->width, threads = s->stages.threads;
    float *mine = s->mine + (size_t)thread * s->mine_size;
    float *normed = mine + 6 * (size_t)s->B * s->stride, *scratch = normed + (size_t)s->B * D;
    Stage stage;
    describe(s, 0, 0, mine, &stage);
    for (int number = 0; number < m->layers * STAGES; number++) {
        const int layer = number / STAGES, kind = number % STAGES;
        int done = 0, chunk;
        for (int other = 0; other < threads; other++) {
            const int owner = (thread + other) % threads;
            while ((chunk = claim_chunk(&s->stages, (uint32_t)number, owner, stage.chunks)) >= 0) {
                if (!done && (kind == 0 || kind == 3)) prepare(s, layer, kind, mine);
                if (chunk == 0 && (kind == 0 || kind == 3)) {
                    float *shift = s->shifts + ((size_t)layer * 2 + (kind == 3)) * s->B * D;
                    memcpy(shift, normed, (size_t)s->B * D * sizeof(float));
                }
                if (kind == 1) run_head(s, layer, chunk, scratch);
                else run_product(&stage, chunk, s->B);
                done++;
            }
        }
        finish_chunks(&s->stages, (uint32_t)number, done, stage.chunks);
        if (number + 1 < m->layers * STAGES) {
            describe(s, (number + 1) / STAGES, (number + 1) % STAGES, mine, &stage);
            fetch_ahead(&stage, thread, threads);
        }
        await_end(&s->stages, (uint32_t)number);
    }
}

static float *carve(float **from, size_t count) {
    float *place = *from;
    *from += (count + 15) / 16 * 16;
    return place;
}

/* One token of B rows through the whole model. x (B, D) fp32 as embedded; `before`, the slots and what comes after as in
 * Step; hidden (B, D) is what the head reads. A row's slot of `wkv` may be the one that it is read from: each row of a
 * matrix is read before it is written. Returns 0, or 1 when there is no memory. */
int decode_step_in_slots(const Model *model, int B, int threads, const float *x, const LayerState *before,
                         const int32_t *slots, int slot_count, float *wkv, float *shifts, float *hidden) {
    const size_t D = (size_t)model->width, S = (size_t)padded(model->width), N = D / (size_t)model->heads, b = (size_t)B;
    const size_t F = (size_t)padded(model->hidden);
    const int ranks[] = {model->decay_rank, model->iclr_rank, model->gate_rank, model->value_rank};
    if (threads < 1) threads = 1;
    if (threads > MOST_SHARES) threads = MOST_SHARES;
    const size_t mine = (6 * b * S + b * D + 8 * N + 31) / 16 * 16;
    size_t floats = 7 * (b * S + 16) + b * F + 16 + threads * mine;
    for (int i = 0; i < 4; i++) floats += b * ranks[i] + 16;
    float *memory = aligned_alloc(LINE, (floats * sizeof(float) + LINE - 1) / LINE * LINE), *free_ = memory;
    if (!memory) return 1;
    Step s = {.model = model, .before = before, .slots = slots, .wkv = wkv, .shifts = shifts, .slot_count = (size_t)slot_count,
              .hidden = hidden, .B = B, .stride = (int)S, .mine_size = mine};
    s.x = carve(&free_, b * S);
    s.r = carve(&free_, b * S);
    s.k = carve(&free_, b * S);
    s.v = carve(&free_, b * S);
    s.v_first = carve(&free_, b * S);
    s.z = carve(&free_, b * S);
    s.squared = carve(&free_, b * F);
    for (int i = 0; i < 4; i++) s.down[i] = carve(&free_, b * ranks[i]);
    s.mine = carve(&free_, threads * mine);
    memset(s.z, 0, b * S * sizeof(float)); /* int8 rows are filled up: what they meet must be zeros */
    memset(s.squared, 0, b * F * sizeof(float));
    const Tensor *around = model->tensors + (size_t)model->layers * LAYER_TENSORS;
    for (size_t row = 0; row < b; row++)
        layer_norm(x + row * D, around + LN0_WEIGHT, around + LN0_BIAS, (int)D, model->eps, s.x + row * D);
    run_stages(&s.stages, work, &s, threads);
    for (size_t row = 0; row < b; row++)
        layer_norm(s.x + row * D, around + LN_OUT_WEIGHT, around + LN_OUT_BIAS, (int)D, model->eps, hidden + row * D);
    free(memory);
    return 0;
}

/* The same with a state of B rows, from one place to another. */
int decode_step(const Model *model, int B, int threads, const float *x, const LayerState *before, float *wkv, float *shifts,
                float *hidden) {
    const int32_t rows[ROWS] = {0, 1, 2, 3, 4, 5, 6, 7};
    return decode_step_in_slots(model, B, threads, x, before, rows, B, wkv, shifts, hidden);
}

typedef struct {
    struct stages stages;
    Stage stage;
    int B;
} Head;

static void work_head(void *job, int thread) {
    Head *head = job;
    const int threads = head->stages.threads;
    int done = 0, chunk;
    for (int other = 0; other < threads; other++)
        while ((chunk = claim_chunk(&head->stages, 0, (thread + other) % threads, head->stage.chunks)) >= 0) {
            run_product(&head->stage, chunk, head->B);
            done++;
        }
    finish_chunks(&head->stages, 0, done, head->stage.chunks);
    await_end(&head->stages, 0);
}

/* out (B, rows) = x (B, n) times a matrix (rows, n) transposed, all fp32 but the matrix. Returns as decode_step does. */
int decode_product(const Tensor *matrix, int rows, int n, int B, int threads, const float *x, float *out) {
    const size_t stride = (size_t)padded(n);
    float *filled = aligned_alloc(LINE, (size_t)B * stride * sizeof(float));
    if (!filled) return 1;
    memset(filled, 0, (size_t)B * stride * sizeof(float));
    for (int b = 0; b < B; b++) memcpy(filled + b * stride, x + (size_t)b * n, (size_t)n * sizeof(float));
    Head head = {.B = B};
    add_product(&head.stage, matrix, rows, n, filled, (int)stride, out, rows, PLAIN, 0);
    run_stages(&head.stages, work_head, &head, threads);
    free(filled);
    return 0;
}
