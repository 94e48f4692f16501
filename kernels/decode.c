/* RWKV-7, few tokens at a time, on a CPU: the whole model in one call.
 *
 * Letters: B rows (at most 64), D width, H heads, N head size, F width of the channel mix, R rank, V vocabulary.
 *
 * A row is a token: of a text of its own, as in decoding, or the one after the row before, as in reading a short prompt.
 *
 * What bounds a step of one row is reading every weight once. So weights are read where torch holds them, in the type
 * that they have there, each once for all rows; threads read long contiguous pieces; and a layer is five stages
 * (stages.h), between which threads wait for one another:
 *
 *   1  ln1, token shift, six interpolations (each thread for itself: they cost little); r, k, v and the low ranks' way down
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
enum { W = 16, ACROSS = 4 }; /* floats in a vector; vectors x that a weight meets at once */
#elif defined(__AVX__)
enum { W = 8, ACROSS = 2 };
#else
enum { W = 4, ACROSS = 2 };
#endif

/* Or GCC reads a vector from memory again wherever it is used. */
#if defined(__AVX512F__)
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define IN_REGISTER(vector)
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef float Quarter __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { GROUP = 64, LINE = 64, AHEAD = 8192 };
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
    IN_REGISTER(lanes);
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

INLINE Vec tanh_vec(Vec x) {
    const Vec s = x * x; /* near 0 the other formula would cancel */
    const Vec series = x - x * s * (0.33333333f - s * (0.13333333f - s * (0.05396825f - s * 0.02186949f)));
    return choose(s < 0.0625f, series, 1.0f - 2.0f / (1.0f + exp_vec(x + x)));
}

/* The sums of four vectors times ACROSS: out[i] is v[i]'s. */
INLINE void sums(const Vec *v, float *out) {
#if defined(__AVX512F__)
    __m512 pairs[8], fours[4], halves[2];
    UNROLL for (int i = 0; i < 8; i++) {
        const __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512d a = (__m512d)pairs[2 * i], b = (__m512d)pairs[2 * i + 1];
        fours[i] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const __m512 a = fours[2 * i], b = fours[2 * i + 1];
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    store(out, (Vec)_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                                  _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd)));
#else
    UNROLL for (int i = 0; i < 4 * ACROSS; i++) out[i] = sum(v[i]);
#endif
}

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
    const float positive = 0 > y ? 0 : y; /* NaN stays; a branch would be guessed wrongly half of the time */
    if (finish == SQUARED_RELU) y = positive * positive;
    *out = y;
}

/* Asks for the line that lies AHEAD of a place. Rows lie one after another, so this is what comes next. */
#define FETCH_AHEAD(place) __builtin_prefetch((const char *)(place) + AHEAD)

/* One row of a matrix against few vectors, from the `first` on: every weight is read and made fp32 once. One stream of
 * memory is faster than several rows at a time. */
INLINE void one_row(int type, const Product *p, int row, int first, int count) {
    const size_t stride = type == INT8 ? (size_t)(p->n + GROUP - 1) / GROUP * GROUP : (size_t)p->n;
    const char *data = (const char *)p->tensor->data + (size_t)row * stride * element_bytes[type];
    const float *x = p->x + (size_t)first * p->x_stride;
    Vec total[ACROSS][2]; /* two, or each product would wait for the one before */
    UNROLL for (int b = 0; b < count; b++) total[b][0] = total[b][1] = (Vec){0};
    int i = 0;
    if (type == INT8) {
        const uint16_t *scales = p->tensor->scales + (size_t)row * (stride / GROUP);
        for (; i < (int)stride; i += GROUP) {
            Vec part[ACROSS];
            FETCH_AHEAD(data + i);
            UNROLL for (int b = 0; b < count; b++) part[b] = (Vec){0};
            UNROLL for (int j = 0; j < GROUP; j += W) {
                const Vec weight = load_int8(data + i, j);
                UNROLL for (int b = 0; b < count; b++) part[b] += weight * load_fp32(x + b * p->x_stride + i + j);
            }
            const Vec scale = load_scale(scales + i / GROUP);
            UNROLL for (int b = 0; b < count; b++) total[b][0] += part[b] * scale;
        }
    } else {
        const int step = LINE / element_bytes[type];
        for (; i + 2 * step <= p->n; i += 2 * step) {
            FETCH_AHEAD(data + i * element_bytes[type]);
            FETCH_AHEAD(data + (i + step) * element_bytes[type]);
            UNROLL for (int j = 0; j < 2 * step; j += W) {
                const Vec weight = load(type, data, i + j);
                UNROLL for (int b = 0; b < count; b++)
                    total[b][j / W % 2] += weight * load_fp32(x + b * p->x_stride + i + j);
            }
        }
    }
    UNROLL for (int b = 0; b < count; b++) {
        float y = sum(total[b][0] + total[b][1]);
        for (int j = i; j < p->n; j++) y += load_one(type, data, j) * x[b * p->x_stride + j];
        finish_one(p->out + (size_t)(first + b) * p->out_stride + row, y, p->finish);
    }
}

/* Four rows of a matrix against ACROSS vectors: every number that is loaded is used several times. */
INLINE void four_rows(int type, const Product *p, int row, int first, int fetches) {
    const size_t stride = type == INT8 ? (size_t)(p->n + GROUP - 1) / GROUP * GROUP : (size_t)p->n;
    const size_t bytes = stride * element_bytes[type];
    const char *data = (const char *)p->tensor->data + (size_t)row * bytes;
    const float *x = p->x + (size_t)first * p->x_stride;
    const int step = LINE / element_bytes[type], end = type == INT8 ? (int)stride : p->n;
    Vec total[4 * ACROSS];
    UNROLL for (int i = 0; i < 4 * ACROSS; i++) total[i] = (Vec){0};
    int i = 0;
    for (; i + step <= end; i += step) {
        Vec scale[4];
        UNROLL for (int r = 0; r < 4; r++) {
            if (fetches) FETCH_AHEAD(data + r * bytes + i * element_bytes[type]);
            if (type == INT8) scale[r] = load_scale(p->tensor->scales + (row + r) * (stride / GROUP) + i / GROUP);
        }
        UNROLL for (int j = 0; j < step; j += W) {
            Vec weight[4];
            UNROLL for (int r = 0; r < 4; r++) {
                weight[r] = type == INT8 ? load_int8(data + r * bytes + i, j) * scale[r] : load(type, data + r * bytes, i + j);
                IN_REGISTER(weight[r]);
            }
            UNROLL for (int b = 0; b < ACROSS; b++) {
                Vec here = load_fp32(x + b * p->x_stride + i + j);
                IN_REGISTER(here);
                UNROLL for (int r = 0; r < 4; r++) total[4 * b + r] += weight[r] * here;
            }
        }
    }
    float y[4 * ACROSS];
    sums(total, y);
    for (; i < end; i++)
        for (int r = 0; r < 4; r++) {
            const float weight = load_one(type, data + r * bytes, i);
            for (int b = 0; b < ACROSS; b++) y[4 * b + r] += weight * x[b * p->x_stride + i];
        }
    if (p->finish == SQUARED_RELU) EACH(y, 4 * ACROSS, choose(v < 0.0f, splat(0), v * v));
    UNROLL for (int b = 0; b < ACROSS; b++) {
        float *out = p->out + (size_t)(first + b) * p->out_stride + row;
        Quarter found, before;
        memcpy(&found, y + 4 * b, sizeof found);
        memcpy(&before, out, sizeof before);
        if (p->finish == ADD) found += before;
        memcpy(out, &found, sizeof found);
    }
}

INLINE void single_rows(int type, const Product *p, int from, int to, int first, int count) {
    for (int row = from; row < to; row++) one_row(type, p, row, first, count);
}

INLINE void rows_of(int type, const Product *p, int from, int to, int B) {
    const int together = B / ACROSS * ACROSS, quads = from + (to - from) / 4 * 4;
    if (together) {
        for (int row = from; row < quads; row += 4) {
            four_rows(type, p, row, 0, 1);
            for (int first = ACROSS; first < together; first += ACROSS) four_rows(type, p, row, first, 0);
        }
        for (int first = 0; first < together; first += ACROSS) single_rows(type, p, quads, to, first, ACROSS);
    }
    switch (B - together) {
        case 1: single_rows(type, p, from, to, together, 1); break;
        case 2: single_rows(type, p, from, to, together, 2); break;
        case 3: single_rows(type, p, from, to, together, 3); break;
    }
}

static void rows_fp32(const Product *p, int from, int to, int B) { rows_of(FP32, p, from, to, B); }
static void rows_bf16(const Product *p, int from, int to, int B) { rows_of(BF16, p, from, to, B); }
static void rows_fp16(const Product *p, int from, int to, int B) { rows_of(FP16, p, from, to, B); }
static void rows_int8(const Product *p, int from, int to, int B) { rows_of(INT8, p, from, to, B); }

/* Columns [from, from + n) of a matrix (R, columns) that is multiplied with vectors x (R). */
typedef struct {
    const void *data;
    int R, columns, from, n;
    const float *x; /* B vectors, x_stride apart */
    float *out;     /* B vectors (n), out_stride apart */
    int x_stride, out_stride;
} Columns;

/* `wide` vectors of columns from the j-th on, for `count` vectors x from the `first` on. */
INLINE void some_columns(int type, const Columns *p, int j, int wide, int first, int count) {
    enum { ROWS_AHEAD = 16 };
    const float *x = p->x + (size_t)first * p->x_stride;
    Vec total[2][ACROSS][4] = {{{{0}}}}; /* two for one x, or each product would wait for the one before */
    for (int i = 0; i < p->R; i += 2)
        UNROLL for (int odd = 0; odd < 2; odd++) {
            if (i + odd == p->R) break;
            const size_t at = (size_t)(i + odd) * p->columns + p->from + j;
            const char *ahead = (const char *)p->data + (at + (size_t)ROWS_AHEAD * p->columns) * element_bytes[type];
            UNROLL for (int byte = 0; byte < wide * W * element_bytes[type]; byte += LINE) __builtin_prefetch(ahead + byte);
            Vec weight[4];
            UNROLL for (int u = 0; u < wide; u++) weight[u] = load(type, p->data, at + u * W);
            UNROLL for (int b = 0; b < count; b++) {
                Vec here = splat(x[(size_t)b * p->x_stride + i + odd]);
                IN_REGISTER(here);
                UNROLL for (int u = 0; u < wide; u++) total[count == 1 ? odd : 0][b][u] += weight[u] * here;
            }
        }
    UNROLL for (int b = 0; b < count; b++)
        UNROLL for (int u = 0; u < wide; u++)
            store(p->out + (size_t)(first + b) * p->out_stride + j + u * W, total[0][b][u] + total[1][b][u]);
}

/* For `count` vectors x from the `first` on. */
INLINE void columns_typed(int type, const Columns *p, int first, int count) {
    int j = 0;
    for (; j + 4 * W <= p->n; j += 4 * W) some_columns(type, p, j, 4, first, count);
    for (; j + W <= p->n; j += W) some_columns(type, p, j, 1, first, count);
    for (; j < p->n; j++)
        for (int b = first; b < first + count; b++) {
            const float *x = p->x + (size_t)b * p->x_stride;
            float total = 0;
            for (int i = 0; i < p->R; i++) total += load_one(type, p->data, (size_t)i * p->columns + p->from + j) * x[i];
            p->out[(size_t)b * p->out_stride + j] = total;
        }
}

INLINE void all_columns(int type, const Columns *p, int B) {
    int first = 0;
    for (; first + ACROSS <= B; first += ACROSS) columns_typed(type, p, first, ACROSS);
    for (; first < B; first++) columns_typed(type, p, first, 1);
}

static void columns_of(int type, const Columns *p, int B) {
    switch (type) {
        case FP32: all_columns(FP32, p, B); break;
        case BF16: all_columns(BF16, p, B); break;
        default: all_columns(FP16, p, B);
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
    float *out = p->out + from;
    const Columns some = {p->tensor->data, p->n, p->rows, from, to - from, p->x, out, p->x_stride, p->out_stride};
    columns_of(p->tensor->type, &some, B);
    for (int b = 0; b < B; b++, out += p->out_stride) {
        if (p->finish == TANH) EACH(out, to - from, tanh_vec(v));
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
    const int32_t *slots;     /* (B,): where the state of a row's text lies in `before` and `wkv` */
    float *wkv, *shifts;      /* what comes after: (layers, slot_count, H, N, N), (layers, 2, texts, D) */
    size_t slot_count;
    float *hidden;            /* (B, D) */
    int B, texts, stride; /* stride: D filled up to a multiple of 64 */
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

/* Whether a row is the token after the one in the row before. */
INLINE int follows(const Step *s, int b) { return b && s->slots[b] == s->slots[b - 1]; }

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
        const float *x = normed + (size_t)b * D, *previous = follows(s, b) ? x - D : shift + (size_t)s->slots[b] * D;
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
INLINE void wkv_row(int N, const float *S, float *after, const float *w, const float *a, const float *b, const float *k,
                    float v, const float *r, float *y) {
    const float removed = dot(S, a, N);
    Vec total = {0};
    float rest = 0;
    int j = 0;
    for (; j + W <= N; j += W) {
        const Vec next = load_fp32(S + j) * load_fp32(w + j) + removed * load_fp32(b + j) + v * load_fp32(k + j);
        total += next * load_fp32(r + j);
        store(after + j, next);
    }
    for (; j < N; j++) {
        after[j] = S[j] * w[j] + removed * b[j] + v * k[j];
        rest += after[j] * r[j];
    }
    *y = sum(total) + rest;
}

/* The same for as many rows as `sums` adds up at once, N a multiple of W. Asks for as many of the `next` state. */
INLINE void wkv_rows(int N, const float *S, float *after, const float *w, const float *a, const float *b, const float *k,
                     const float *v, const float *r, float *y, const float *next) {
    for (int i = 0; i < 4 * ACROSS * N; i += LINE / (int)sizeof(float)) __builtin_prefetch(next + i, 1, 2);
    float removed[4 * ACROSS];
    Vec total[4 * ACROSS];
    UNROLL for (int i = 0; i < 4 * ACROSS; i++) total[i] = (Vec){0};
    for (int j = 0; j < N; j += W) {
        Vec here = load_fp32(a + j);
        IN_REGISTER(here);
        UNROLL for (int i = 0; i < 4 * ACROSS; i++) total[i] += load_fp32(S + (size_t)i * N + j) * here;
    }
    sums(total, removed);
    UNROLL for (int i = 0; i < 4 * ACROSS; i++) total[i] = (Vec){0};
    for (int j = 0; j < N; j += W) {
        Vec decay = load_fp32(w + j), added = load_fp32(k + j), back = load_fp32(b + j), read = load_fp32(r + j);
        IN_REGISTER(decay);
        IN_REGISTER(added);
        IN_REGISTER(back);
        IN_REGISTER(read);
        UNROLL for (int i = 0; i < 4 * ACROSS; i++) {
            const Vec next = load_fp32(S + (size_t)i * N + j) * decay + removed[i] * back + v[i] * added;
            total[i] += next * read;
            store(after + (size_t)i * N + j, next);
        }
    }
    sums(total, y);
}

INLINE void wkv(int N, const float *S, float *after, const float *w, const float *a, const float *b, const float *k,
                const float *v, const float *r, float *y, const float *next) {
    int i = 0;
    if (N % W == 0)
        for (; i + 4 * ACROSS <= N; i += 4 * ACROSS) {
            const size_t at = (size_t)i * N;
            wkv_rows(N, S + at, after + at, w, a, b, k, v + i, r, y + i, next + at);
        }
    for (; i < N; i++) wkv_row(N, S + (size_t)i * N, after + (size_t)i * N, w, a, b, k, v[i], r, y + i);
}

INLINE void head_of_size(int N, const Step *s, int layer, int head, float *scratch) {
    const Model *m = s->model;
    const int D = m->width, from = head * N;
    const int ranks[] = {m->decay_rank, m->iclr_rank, m->gate_rank, m->value_rank}, ups[] = {W2, A2, G2, V2};
    const size_t all = (size_t)s->B * N;
    float *a = scratch, *b = a + N, *y = b + N, *vector = y + N, *up = vector + N;
    for (int i = 0; i < (layer ? 4 : 3); i++) {
        const Tensor *tensor = tensor_of(s, layer, ups[i]);
        columns_of(tensor->type, &(Columns){tensor->data, ranks[i], D, from, N, s->down[i], up + i * all, ranks[i], N}, s->B);
    }
    for (int row = 0; row < s->B; row++) {
        float *w = up + (size_t)row * N, *iclr = w + all, *gate = iclr + all, *mix = gate + all;
        const size_t at = (size_t)row * D + from;
        float *r = s->r + at, *k = s->k + at, *v = s->v + at, *z = s->z + (size_t)row * s->stride + from;
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
        float *after = s->wkv + ((size_t)layer * s->slot_count * m->heads + place) * square;
        const float *before = follows(s, row) ? after : s->before[layer].wkv + place * square;
        const int other = row + 1 < s->B ? s->slots[row + 1] : s->slots[row]; /* states lie far apart */
        const float *next = s->before[layer].wkv + ((size_t)other * m->heads + head) * square;
        wkv(N, before, after, w, a, b, k, v, r, y, next);

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

static void run_head(const Step *s, int layer, int head, float *scratch) {
    const int N = s->model->width / s->model->heads;
    switch (N) {
        case 64: head_of_size(64, s, layer, head, scratch); break;
        case 128: head_of_size(128, s, layer, head, scratch); break;
        default: head_of_size(N, s, layer, head, scratch);
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
    const size_t stride = p->tensor->type == INT8 ? (size_t)padded(p->n) : (size_t)p->n;
    const char *data = (const char *)p->tensor->data +
                       (size_t)(chunk - p->first_chunk) * p->chunk_rows * stride * element_bytes[p->tensor->type];
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
                    float *shift = s->shifts + ((size_t)layer * 2 + (kind == 3)) * s->texts * D;
                    for (int b = 0; b < s->B; b++) {
                        if (b + 1 < s->B && follows(s, b + 1)) continue;
                        memcpy(shift, normed + (size_t)b * D, D * sizeof(float));
                        shift += D;
                    }
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

/* One token of each of B rows through the whole model. x (B, D) fp32 as embedded; `before`, the slots and what comes after
 * as in Step; hidden (B, D) is what the head reads. Rows of one slot lie one after another: they are tokens of one text.
 * A slot of `wkv` may be the one that it is read from: each row of a matrix is read before it is written. Returns 0, or 1
 * when there is no memory. */
int decode_step(const Model *model, int B, int threads, const float *x, const LayerState *before, const int32_t *slots,
                int slot_count, float *wkv, float *shifts, float *hidden) {
    const size_t D = (size_t)model->width, S = (size_t)padded(model->width), N = D / (size_t)model->heads, b = (size_t)B;
    const size_t F = (size_t)padded(model->hidden);
    const int ranks[] = {model->decay_rank, model->iclr_rank, model->gate_rank, model->value_rank};
    if (threads < 1) threads = 1;
    if (threads > MOST_SHARES) threads = MOST_SHARES;
    const size_t mine = (6 * b * S + b * D + 4 * (b + 1) * N + 15) / 16 * 16;
    size_t floats = 7 * (b * S + 16) + b * F + 16 + threads * mine;
    for (int i = 0; i < 4; i++) floats += b * ranks[i] + 16;
    float *memory = aligned_alloc(LINE, (floats * sizeof(float) + LINE - 1) / LINE * LINE), *free_ = memory;
    if (!memory) return 1;
    Step s = {.model = model, .before = before, .slots = slots, .wkv = wkv, .shifts = shifts, .slot_count = (size_t)slot_count,
              .hidden = hidden, .B = B, .stride = (int)S, .mine_size = mine};
    for (int row = 0; row < B; row++) s.texts += !follows(&s, row);
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
