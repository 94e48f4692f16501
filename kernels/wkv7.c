/* WKV-7 on a CPU: S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T,  y_t = S_t r_t.

   T time, H heads, N head size, [value][key] the order of S in memory.

   A head goes through time in pieces of at most PIECE steps. Write P_t for the product of the decays in a piece up to
   and with step t. With what is written at t divided by P_t and what is read there multiplied by it,

       A = a_t P_{t-1}   R = r_t P_t   B = b_t / P_t   K = k_t / P_t,

   the state only grows within a piece, S <- S + u B^T + v K^T with u = S A, and decays once at its end, by P of the last
   step. P stays above exp(-exp(-0.5) PIECE) = 6e-5, so nothing is lost to the division.

   Forward: each step is one pass over S, held as [key][value] so that a vector register holds values: it writes, and
   reads what this step's y and the next step's u need. That is 8 N^2 operations a step, the least there is.

   Backward: the states at the pieces' borders are found again from the entry of each span, and with them a piece is a
   handful of matrix products. In the stacks left = [A; R], right = [B; K], values = [u; v], d_read = [du; dy] and
   mix = left right^T (steps that cannot see each other cut out), with G the gradient of the state after the piece,

       d_values = right G^T + mix^T d_read          (from the last step back: its u part is du)
       d_left = d_read S + (d_read values^T) right  (S the state before the piece, the product cut as mix is)
       d_right = values G + (d_read values^T)^T left
       G <- G + d_read^T left

   and the gradient of the decays follows from d_left and d_right, element by element. */

#include "threads.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define WIDE 4 /* vectors that share a broadcast: as many as the registers allow */
#else
#define WIDE 2
#endif
#define PIECE 16
#define MOST_PIECES (128 / PIECE)
#define WORTH_A_THREAD 200000 /* B T H N N: some microseconds */
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));

#if defined(__clang__)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
typedef int32_t four_places __attribute__((vector_size(16)));
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (four_places){__VA_ARGS__})
#endif

/* ---- numbers in memory ---- */

enum { FLOAT32, BFLOAT16, FLOAT16 };

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float from_bfloat16(uint16_t x) { return float_of((uint32_t)x << 16); }

INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return x == x ? (uint16_t)rounded : 0x7fc0;
}

INLINE float from_float16(uint16_t x) {
    uint32_t shifted = (uint32_t)(x & 0x7fff) << 13;
    float size = float_of(shifted) * 0x1p112f; /* moves the exponent, and makes subnormal numbers normal */
    uint32_t special = (x & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return float_of(bits_of(size) | special | (uint32_t)(x & 0x8000) << 16);
}

INLINE uint16_t to_float16(float x) {
    uint32_t sign = bits_of(x) & 0x80000000, bits = bits_of(x) ^ sign;
    uint32_t small = bits_of(float_of(bits) + 0.5f) - 0x3f000000; /* below 2^-14: the addition rounds */
    uint32_t normal = (bits + 0xc8000fff + (bits >> 13 & 1)) >> 13;
    uint32_t huge = bits > 0x7f800000 ? 0x7e00 : 0x7c00; /* not a number, infinite */
    uint32_t half = bits < 0x38800000 ? small : bits < 0x47800000 ? normal : huge;
    return (uint16_t)(half | sign >> 16);
}

static void load(float *to, const void *from, int64_t offset, int count, int dtype) {
    if (dtype == FLOAT32) {
        memcpy(to, (const float *)from + offset, (size_t)count * 4);
        return;
    }
    const uint16_t *halves = (const uint16_t *)from + offset;
    if (dtype == BFLOAT16)
        for (int i = 0; i < count; i++) to[i] = from_bfloat16(halves[i]);
    else
        for (int i = 0; i < count; i++) to[i] = from_float16(halves[i]);
}

static void store(void *to, int64_t offset, const float *from, int count, int dtype) {
    if (dtype == FLOAT32) {
        memcpy((float *)to + offset, from, (size_t)count * 4);
        return;
    }
    uint16_t *halves = (uint16_t *)to + offset;
    if (dtype == BFLOAT16)
        for (int i = 0; i < count; i++) halves[i] = to_bfloat16(from[i]);
    else
        for (int i = 0; i < count; i++) halves[i] = to_float16(from[i]);
}

/* A head's rows lie far apart, so that the processor cannot guess the next one. A hint may lie outside the array. */
static void will_read(const void *x, int64_t offset, int count, int dtype) {
    int each = dtype == FLOAT32 ? 4 : 2;
    uintptr_t first = (uintptr_t)x + (uintptr_t)(offset * each);
    for (int i = 0; i < count * each; i += 64) __builtin_prefetch((const void *)(first + i), 0, 2);
}

static void will_write(void *x, int64_t offset, int count, int dtype) {
    int each = dtype == FLOAT32 ? 4 : 2;
    uintptr_t first = (uintptr_t)x + (uintptr_t)(offset * each);
    for (int i = 0; i < count * each; i += 64) __builtin_prefetch((const void *)(first + i), 1, 2);
}

/* ---- arithmetic on vectors; every array of floats below has rows of whole vectors, zero beyond N ---- */

INLINE vector at(const float *x) { return *(const vector *)x; }
INLINE void put(float *to, vector x) { *(vector *)to = x; }

/* e^x to 2 units in the last place, for x from -87 to 0 */
INLINE vector exponential(vector x) {
    x -= (vector)((integers)(x + 87.0f) & (x < -87.0f));
    vector shifted = x * 1.44269504f + 12582912.0f; /* its last bits are x / ln 2, rounded */
    vector whole = shifted - 12582912.0f;
    x = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    vector series = x * 1.3981999e-3f + 8.3690226e-3f;
    series = series * x + 4.1666519e-2f;
    series = series * x + 1.6666577e-1f;
    series = series * x + 0.5f;
    series = series * x * x + x + 1.0f;
    return (vector)((integers)series + ((integers)shifted << 23));
}

static void transpose(float *to, int to_row, const float *from, int from_row, int rows, int columns) {
    for (int i = 0; i < rows; i += 4)
        for (int j = 0; j < columns; j += 4) {
            const float *x = from + (size_t)i * from_row + j;
            float *y = to + (size_t)j * to_row + i;
            four a = *(const four *)x, b = *(const four *)(x + from_row);
            four c = *(const four *)(x + 2 * from_row), d = *(const four *)(x + 3 * from_row);
            four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
            *(four *)y = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(four *)(y + to_row) = SHUFFLE(ab, cd, 2, 3, 6, 7);
            ab = SHUFFLE(a, b, 2, 6, 3, 7), cd = SHUFFLE(c, d, 2, 6, 3, 7);
            *(four *)(y + 2 * to_row) = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(four *)(y + 3 * to_row) = SHUFFLE(ab, cd, 2, 3, 6, 7);
        }
}

/* A matrix read in some order: element (i, j) is x[i * row + j * column]. */
struct matrix {
    const float *x;
    int row, column;
};

INLINE void multiply_tile(float *to, int to_row, struct matrix a, const float *b, int b_row, int depth, int add,
                          int rows, int vectors) {
    vector sum[4][WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) sum[i][j] = add ? at(to + i * to_row + j * LANES) : (vector){0};
    for (int p = 0; p < depth; p++) {
        vector row[WIDE];
        for (int j = 0; j < vectors; j++) row[j] = at(b + (size_t)p * b_row + j * LANES);
        for (int i = 0; i < rows; i++) {
            float x = a.x[i * a.row + p * a.column];
            for (int j = 0; j < vectors; j++) sum[i][j] += row[j] * x;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) put(to + i * to_row + j * LANES, sum[i][j]);
}

/* to = a b, or to += a b: rows a multiple of 4, columns of LANES. */
static void multiply(float *to, int to_row, struct matrix a, const float *b, int b_row, int rows, int columns, int depth,
                     int add) {
    for (int j = 0; j < columns;) {
        int left = (columns - j) / LANES, vectors = left < WIDE ? left : WIDE;
        for (int i = 0; i < rows; i += 4) {
            float *out = to + (size_t)i * to_row + j;
            struct matrix part = {a.x + (size_t)i * a.row, a.row, a.column};
            switch (vectors) {
            case 1: multiply_tile(out, to_row, part, b + j, b_row, depth, add, 4, 1); break;
            case 2: multiply_tile(out, to_row, part, b + j, b_row, depth, add, 4, 2); break;
#if WIDE == 4
            case 3: multiply_tile(out, to_row, part, b + j, b_row, depth, add, 4, 3); break;
            case 4: multiply_tile(out, to_row, part, b + j, b_row, depth, add, 4, 4); break;
#endif
            }
        }
        j += vectors * LANES;
    }
}

/* ---- what a call works on ---- */

struct call {
    int time, heads, size; /* T, H, N */
    int sequences, span, dtype, threads, keep;
    const int32_t *ends;                 /* (sequences + 1), or null: one sequence of T steps in each row of the batch */
    const void *r, *k, *v, *a, *b;       /* (B, T, H, N) of the dtype */
    const float *log_w, *state, *d_last; /* (B, T, H, N), (sequences, H, N, N) or null, the same */
    void *y, *d_r, *d_k, *d_v, *d_a, *d_b;
    const void *d_y;
    float *last, *entries, *d_log_w, *d_state;
    float *scratch; /* for each thread */
    size_t scratch_floats;
    int stride; /* N up to whole vectors */
    int parts;  /* forward: the values of a head are split among so many tasks */
    int pieces; /* backward: at most so many in a span */
};

/* One head of one sequence. */
struct head {
    int64_t first;  /* element of its first step in (B, T, H, N) */
    int64_t entry;  /* its first row of entries */
    int steps, index; /* index counts heads of sequences, as in (sequences, H, N, N) */
    int which;        /* 0 to H - 1 */
};

static struct head find_head(const struct call *call, int index) {
    int s = index / call->heads, h = index % call->heads;
    int64_t start = call->ends ? call->ends[s] : (int64_t)s * call->time;
    int steps = call->ends ? call->ends[s + 1] - call->ends[s] : call->time;
    int spans = (call->time + call->span - 1) / call->span;
    int64_t entry = call->ends ? start / call->span + s : (int64_t)s * spans;
    return (struct head){(start * call->heads + h) * call->size, entry, steps, index, h};
}

static float *entry_of(const struct call *call, struct head head, int span) {
    int64_t matrix = (head.entry + span) * call->heads + head.which;
    return call->entries + matrix * call->size * call->size;
}

/* Rows of some steps in a piece, each stride floats long. */
struct piece {
    int steps;
    float *left, *right; /* 2 PIECE rows: A then R, B then K */
    float *values;       /* 2 PIECE rows: u then v */
    float *decay;        /* PIECE + 1 rows: P from P_0 = 1 on */
};

enum { PIECE_ROWS = 7 * PIECE + 1 };

static struct piece piece_in(float *memory, int stride) {
    struct piece piece = {.left = memory};
    piece.right = piece.left + 2 * PIECE * stride;
    piece.values = piece.right + 2 * PIECE * stride;
    piece.decay = piece.values + 2 * PIECE * stride;
    return piece;
}

/* Reads the steps from element `first` on, as many as there are or fit; the other rows become zero. */
static void open_piece(struct piece *piece, const struct call *call, int64_t first, int left) {
    int stride = call->stride, size = call->size, dtype = call->dtype, steps = left < PIECE ? left : PIECE;
    piece->steps = steps;
    for (int i = 0; i < stride; i++) piece->decay[i] = 1;
    for (int t = 0; t < steps; t++) {
        int64_t step = first + (int64_t)t * call->heads * size;
        float *A = piece->left + t * stride, *R = A + PIECE * stride;
        float *B = piece->right + t * stride, *K = B + PIECE * stride;
        float *before = piece->decay + t * stride, *after = before + stride;
        int64_t soon = step + (int64_t)PIECE * call->heads * size;
        const void *given[] = {call->a, call->r, call->b, call->k, call->v};
        for (int i = 0; i < 5; i++) will_read(given[i], soon, size, dtype);
        will_read(call->log_w, soon, size, FLOAT32);
        load(A, call->a, step, size, dtype);
        load(R, call->r, step, size, dtype);
        load(B, call->b, step, size, dtype);
        load(K, call->k, step, size, dtype);
        load(piece->values + (PIECE + t) * stride, call->v, step, size, dtype);
        load(after, call->log_w, step, size, FLOAT32);
        for (int i = size; i < stride; i++) after[i] = 0;
        for (int i = 0; i < stride; i += LANES) {
            vector decay = at(before + i) * exponential(at(after + i)), growth = 1.0f / decay;
            put(A + i, at(A + i) * at(before + i));
            put(R + i, at(R + i) * decay);
            put(B + i, at(B + i) * growth);
            put(K + i, at(K + i) * growth);
            put(after + i, decay);
        }
    }
    size_t rest = (size_t)(PIECE - steps) * stride * sizeof(float);
    float *stacks[] = {piece->left, piece->right, piece->values};
    for (int i = 0; i < 3; i++)
        for (int half = 0; half < 2; half++) memset(stacks[i] + (half * PIECE + steps) * stride, 0, rest);
}

/* ---- forward ---- */

/* Some values of a head's state, as blocks of at most WIDE vectors of values: [block][key][value]. */
struct tile {
    float *x;
    int first, vectors; /* the first value, how many vectors of values */
};

INLINE float *block_of(struct tile tile, int block, int size) { return tile.x + (size_t)block * size * WIDE * LANES; }

INLINE int vectors_in(struct tile tile, int block) {
    int left = tile.vectors - block * WIDE;
    return left < WIDE ? left : WIDE;
}

static void load_tile(struct tile tile, const float *state, int size) {
    memset(tile.x, 0, (size_t)tile.vectors * LANES * size * sizeof(float));
    for (int block = 0; state && block * WIDE < tile.vectors; block++) {
        int first = tile.first + block * WIDE * LANES, width = vectors_in(tile, block) * LANES;
        int rows = first + width <= size ? width : size - first;
        transpose(block_of(tile, block, size), width, state + (size_t)first * size, size, rows, size);
    }
}

/* To [value][key] with rows of `row` floats. */
static void store_tile(struct tile tile, float *state, int row, int size) {
    for (int block = 0; block * WIDE < tile.vectors; block++) {
        int first = tile.first + block * WIDE * LANES, width = vectors_in(tile, block) * LANES;
        int columns = first + width <= size ? width : size - first;
        transpose(state + (size_t)first * row, row, block_of(tile, block, size), width, size, columns);
    }
}

static void decay_tile(struct tile tile, const float *decay, int size) {
    for (int block = 0; block * WIDE < tile.vectors; block++) {
        float *x = block_of(tile, block, size);
        int width = vectors_in(tile, block) * LANES;
        for (int i = 0; i < size; i++)
            for (int j = 0; j < width; j += LANES) put(x + i * width + j, at(x + i * width + j) * decay[i]);
    }
}

/* Takes a block through a piece. Values of the block begin at `values`, `y` and so on are rows of stride floats.
   The state decays first, by what the piece before left to do. */
INLINE void walk_block(float *block, int size, int stride, const struct piece *piece, const float *decay, float *values,
                       float *y, int vectors) {
    vector u[WIDE] = {0};
    const float *A = piece->left, *R = A + PIECE * stride, *B = piece->right, *K = B + PIECE * stride;
    for (int i = 0; i < size; i++) {
        float w = decay[i], a = A[i];
        for (int j = 0; j < vectors; j++) {
            float *x = block + (i * vectors + j) * LANES;
            vector state = at(x) * w;
            put(x, state);
            u[j] += state * a;
        }
    }
    for (int t = 0; t < piece->steps; t++) {
        vector v[WIDE], read[WIDE] = {0}, next[WIDE] = {0};
        for (int j = 0; j < vectors; j++) v[j] = at(values + (PIECE + t) * stride + j * LANES);
        A += stride; /* of the next step; after the last one, any row */
        for (int i = 0; i < size; i++) {
            float b = B[i], k = K[i], r = R[i], a = A[i]; /* read once: as far as C knows, the state lies over them */
            for (int j = 0; j < vectors; j++) {
                float *x = block + (i * vectors + j) * LANES;
                vector state = at(x) + u[j] * b + v[j] * k;
                put(x, state);
                if (y) read[j] += state * r;
                next[j] += state * a;
            }
        }
        for (int j = 0; j < vectors; j++) {
            if (y)
                put(y + t * stride + j * LANES, read[j]);
            else
                put(values + t * stride + j * LANES, u[j]);
            u[j] = next[j];
        }
        R += stride, B += stride, K += stride;
    }
}

/* Writes y where it is given (PIECE rows), and otherwise u into the piece. */
static void walk(struct tile tile, int size, int stride, const struct piece *piece, const float *decay, float *y) {
    for (int block = 0; block * WIDE < tile.vectors; block++) {
        float *x = block_of(tile, block, size);
        int first = tile.first + block * WIDE * LANES;
        float *values = piece->values + first, *read = y ? y + first : NULL;
        switch (vectors_in(tile, block) + (y ? 0 : WIDE)) {
#define WALK(count)                                                                          \
    case count: walk_block(x, size, stride, piece, decay, values, read, count); break;       \
    case WIDE + count: walk_block(x, size, stride, piece, decay, values, NULL, count); break;
            WALK(1)
            WALK(2)
#if WIDE == 4
            WALK(3)
            WALK(4)
#endif
#undef WALK
        }
    }
}

/* Some of a head's values through all its steps. */
static void forward_task(void *context, int task, int worker) {
    const struct call *call = context;
    struct head head = find_head(call, task / call->parts);
    int size = call->size, stride = call->stride;
    int vectors = stride / LANES, most = (vectors + call->parts - 1) / call->parts;
    struct tile tile = {call->scratch + call->scratch_floats * worker, task % call->parts * most * LANES, most};
    if (tile.first >= stride) return;
    if (tile.vectors > vectors - tile.first / LANES) tile.vectors = vectors - tile.first / LANES;
    struct piece piece = piece_in(tile.x + (size_t)stride * size, stride);
    float *y = piece.left + PIECE_ROWS * stride, *decay = y + PIECE * stride;
    int wanted = tile.first + tile.vectors * LANES <= size ? tile.vectors * LANES : size - tile.first;
    int64_t step = (int64_t)call->heads * size, own = (int64_t)head.index * size * size;

    load_tile(tile, call->state ? call->state + own : NULL, size);
    for (int i = 0; i < stride; i++) decay[i] = 1;
    for (int t = 0; t < head.steps; t += PIECE) {
        if (call->keep && t % call->span == 0) {
            decay_tile(tile, decay, size);
            for (int i = 0; i < stride; i++) decay[i] = 1;
            store_tile(tile, entry_of(call, head, t / call->span), size, size);
        }
        open_piece(&piece, call, head.first + t * step, head.steps - t);
        walk(tile, size, stride, &piece, decay, y);
        memcpy(decay, piece.decay + piece.steps * stride, (size_t)stride * sizeof(float));
        for (int s = 0; s < piece.steps; s++)
            store(call->y, head.first + (t + s) * step + tile.first, y + s * stride + tile.first, wanted, call->dtype);
    }
    decay_tile(tile, decay, size);
    store_tile(tile, call->last + own, size, size);
}

static size_t forward_floats(int size, int stride) {
    return (size_t)stride * size + (PIECE_ROWS + PIECE + 1) * (size_t)stride;
}

INLINE float sum_of(eight x) {
    four low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]};
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

/* One step of one head, a row of the state at a time: a single step does not pay for turning the state round. */
static void step_task(void *context, int task, int worker) {
    const struct call *call = context;
    struct head head = find_head(call, task);
    int size = call->size, stride = call->stride;
    float *w = call->scratch + call->scratch_floats * worker;
    float *r = w + stride, *k = r + stride, *v = k + stride, *a = v + stride, *b = a + stride, *y = b + stride;
    load(w, call->log_w, head.first, size, FLOAT32);
    load(r, call->r, head.first, size, call->dtype);
    load(k, call->k, head.first, size, call->dtype);
    load(v, call->v, head.first, size, call->dtype);
    load(a, call->a, head.first, size, call->dtype);
    load(b, call->b, head.first, size, call->dtype);
    for (int i = 0; i < stride; i += LANES) put(w + i, exponential(at(w + i)));
    const float *state = call->state ? call->state + (int64_t)head.index * size * size : NULL;
    float *last = call->last + (int64_t)head.index * size * size;
    for (int i = 0; i < size; i++) {
        eight removed = {0}, read = {0};
        for (int j = 0; state && j < size; j += 8)
            removed += *(const eight *)(state + i * size + j) * *(const eight *)(a + j);
        float u = sum_of(removed);
        for (int j = 0; j < size; j += 8) {
            eight x = *(const eight *)(b + j) * u + *(const eight *)(k + j) * v[i];
            if (state) x += *(const eight *)(state + i * size + j) * *(const eight *)(w + j);
            *(eight *)(last + i * size + j) = x;
            read += x * *(const eight *)(r + j);
        }
        y[i] = sum_of(read);
    }
    store(call->y, head.first, y, size, call->dtype);
}

/* ---- backward ---- */

/* What the backward of a head works in. */
struct desk {
    float *states;            /* [value][key]: before each piece of a span and after the last */
    float *pieces;            /* the span's pieces */
    float *tile;              /* [key][value] */
    float *gradient, *turned; /* of the state, [value][key] and [key][value] */
    float *d_read, *d_left, *d_right, *d_values; /* 2 PIECE rows; of d_values only those of v */
    float *turned_stack;                         /* 2 PIECE columns */
    float *mix, *d_mix;                          /* (2 PIECE, 2 PIECE) */
    float *tail, *row;                           /* a row each */
};

/* Lays a desk out; returns how many floats it takes. */
static size_t lay_out(struct desk *desk, float *memory, int stride, int pieces) {
    size_t matrix = (size_t)stride * stride, stack = 2 * PIECE * (size_t)stride, mix = 4 * PIECE * PIECE;
    struct {
        float **part;
        size_t floats;
    } parts[] = {
        {&desk->states, (pieces + 1) * matrix},
        {&desk->pieces, (size_t)pieces * PIECE_ROWS * stride},
        {&desk->tile, matrix},
        {&desk->gradient, matrix},
        {&desk->turned, matrix},
        {&desk->d_read, stack},
        {&desk->d_left, stack},
        {&desk->d_right, stack},
        {&desk->d_values, stack / 2},
        {&desk->turned_stack, stack},
        {&desk->mix, mix},
        {&desk->d_mix, mix},
        {&desk->tail, stride},
        {&desk->row, stride},
    };
    size_t floats = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; floats += parts[i++].floats)
        *parts[i].part = memory ? memory + floats : NULL;
    return floats;
}

/* Products of the rows of one stack with those of another, zero where the first cannot see the step of the second:
   rows of a see earlier steps, rows of r their own too. */
static void meet(float *mix, const float *rows, const float *others, float *turned, int stride) {
    transpose(turned, 2 * PIECE, others, stride, 2 * PIECE, stride);
    multiply(mix, 2 * PIECE, (struct matrix){rows, stride, 1}, turned, 2 * PIECE, 2 * PIECE, 2 * PIECE, stride, 0);
    for (int i = 0; i < 2 * PIECE; i++) {
        int seen = i < PIECE ? i : i - PIECE + 1;
        for (int half = 0; half < 2; half++)
            memset(mix + (2 * i + half) * PIECE + seen, 0, (size_t)(PIECE - seen) * sizeof(float));
    }
}

/* From the gradient of the state after a piece to that of the state before, and to those of the piece's inputs. */
static void backward_piece(const struct call *call, const struct desk *desk, const struct piece *piece,
                           const float *state, const float *state_after, int64_t first) {
    int size = call->size, stride = call->stride, half = PIECE * stride, both = 2 * PIECE;
    int64_t step = (int64_t)call->heads * size;
    const float *decay = piece->decay + piece->steps * stride, *mix_r = desk->mix + PIECE * both;
    const struct matrix right = {piece->right, stride, 1}, values = {piece->values, stride, 1};
    float *gradient = desk->gradient, *d_u = desk->d_read, *d_y = d_u + half, *d_v = desk->d_values;

    memset(desk->tail, 0, (size_t)stride * sizeof(float));
    for (int i = 0; i < size; i++)
        for (int j = 0; j < stride; j += LANES) {
            float *d = gradient + i * stride + j;
            put(desk->tail + j, at(desk->tail + j) + at(d) * at(state_after + i * stride + j));
            put(d, at(d) * at(decay + j));
        }
    for (int t = 0; t < piece->steps; t++) {
        int64_t here = first + t * step;
        load(d_y + t * stride, call->d_y, here, size, call->dtype);
        will_read(call->d_y, here - PIECE * step, size, call->dtype);
        void *made[] = {call->d_r, call->d_k, call->d_v, call->d_a, call->d_b};
        for (int i = 0; i < 5; i++) will_write(made[i], here, size, call->dtype);
        will_write(call->d_log_w, here, size, FLOAT32);
    }
    memset(d_y + piece->steps * stride, 0, (size_t)(PIECE - piece->steps) * stride * sizeof(float));

    meet(desk->mix, piece->left, piece->right, desk->turned_stack, stride);
    transpose(desk->turned, stride, gradient, stride, stride, stride);
    multiply(d_u, stride, right, desk->turned, stride, PIECE, stride, size, 0);
    multiply(d_v, stride, (struct matrix){right.x + half, stride, 1}, desk->turned, stride, PIECE, stride, size, 0);
    multiply(d_u, stride, (struct matrix){mix_r, 1, both}, d_y, stride, PIECE, stride, PIECE, 1);
    multiply(d_v, stride, (struct matrix){mix_r + PIECE, 1, both}, d_y, stride, PIECE, stride, PIECE, 1);
    for (int s = PIECE - 1; s > 0; s--)
        for (int t = 0; t < s; t++)
            for (int j = 0; j < stride; j += LANES) {
                float *d = d_u + t * stride + j;
                put(d, at(d) + at(d_u + s * stride + j) * desk->mix[both * s + t]);
            }
    multiply(d_v, stride, (struct matrix){desk->mix + PIECE, 1, both}, d_u, stride, PIECE, stride, PIECE, 1);

    struct matrix d_read = {desk->d_read, stride, 1}, d_read_turned = {desk->d_read, 1, stride};
    struct matrix d_mix = {desk->d_mix, both, 1}, d_mix_turned = {desk->d_mix, 1, both};
    meet(desk->d_mix, desk->d_read, piece->values, desk->turned_stack, stride);
    multiply(desk->d_left, stride, d_read, state, stride, both, stride, size, 0);
    multiply(desk->d_left, stride, d_mix, piece->right, stride, both, stride, both, 1);
    multiply(desk->d_right, stride, values, gradient, stride, both, stride, size, 0);
    multiply(desk->d_right, stride, d_mix_turned, piece->left, stride, both, stride, both, 1);
    multiply(gradient, stride, d_read_turned, piece->left, stride, size, stride, both, 1);

    for (int t = piece->steps - 1; t >= 0; t--) {
        const float *A = piece->left + t * stride, *B = piece->right + t * stride, *P = piece->decay + t * stride;
        float *d_a = desk->d_left + t * stride, *d_b = desk->d_right + t * stride;
        for (int j = 0; j < stride; j += LANES) {
            vector before = at(P + j), after = at(P + stride + j), growth = 1.0f / after;
            vector dA = at(d_a + j), dR = at(d_a + half + j), dB = at(d_b + j), dK = at(d_b + half + j);
            vector later = at(desk->tail + j) + at(A + half + j) * dR - at(B + j) * dB - at(B + half + j) * dK;
            put(desk->row + j, later);
            put(desk->tail + j, later + at(A + j) * dA);
            put(d_a + j, dA * before);
            put(d_a + half + j, dR * after);
            put(d_b + j, dB * growth);
            put(d_b + half + j, dK * growth);
        }
        int64_t here = first + t * step;
        store(call->d_log_w, here, desk->row, size, FLOAT32);
        store(call->d_a, here, d_a, size, call->dtype);
        store(call->d_r, here, d_a + half, size, call->dtype);
        store(call->d_b, here, d_b, size, call->dtype);
        store(call->d_k, here, d_b + half, size, call->dtype);
        store(call->d_v, here, d_v + t * stride, size, call->dtype);
    }
}

static void backward_task(void *context, int task, int worker) {
    const struct call *call = context;
    struct head head = find_head(call, task);
    int size = call->size, stride = call->stride, ones = stride;
    size_t matrix = (size_t)stride * stride;
    struct desk desk;
    lay_out(&desk, call->scratch + call->scratch_floats * worker, stride, call->pieces);
    struct tile tile = {desk.tile, 0, stride / LANES};
    struct piece pieces[MOST_PIECES];
    int64_t step = (int64_t)call->heads * size, own = (int64_t)head.index * size * size;

    memset(desk.gradient, 0, matrix * sizeof(float));
    for (int i = 0; call->d_last && i < size; i++)
        load(desk.gradient + i * stride, call->d_last, own + i * size, size, FLOAT32);
    for (int span = (head.steps + call->span - 1) / call->span - 1; span >= 0; span--) {
        int from = span * call->span, to = from + call->span < head.steps ? from + call->span : head.steps, count = 0;
        for (int i = 0; i < ones; i++) desk.tail[i] = 1;
        load_tile(tile, entry_of(call, head, span), size);
        store_tile(tile, desk.states, stride, size);
        for (int t = from; t < to; t += PIECE, count++) {
            struct piece *piece = &pieces[count];
            *piece = piece_in(desk.pieces + (size_t)count * PIECE_ROWS * stride, stride);
            open_piece(piece, call, head.first + t * step, to - t);
            walk(tile, size, stride, piece, desk.tail, NULL);
            decay_tile(tile, piece->decay + piece->steps * stride, size);
            store_tile(tile, desk.states + (count + 1) * matrix, stride, size);
        }
        while (count-- > 0)
            backward_piece(call, &desk, &pieces[count], desk.states + count * matrix,
                           desk.states + (count + 1) * matrix, head.first + (from + count * PIECE) * step);
    }
    for (int i = 0; i < size; i++) store(call->d_state, own + i * size, desk.gradient + i * stride, size, FLOAT32);
}

/* ---- what Python calls ---- */

static int ends_are_sound(const struct call *call) {
    if (!call->ends) return 1;
    if (call->ends[0] != 0 || call->ends[call->sequences] != call->time) return 0;
    for (int s = 0; s < call->sequences; s++)
        if (call->ends[s] > call->ends[s + 1]) return 0;
    return 1;
}

/* 0: done; 1: no memory; 2: the ends do not rise from 0 to T. */
static int run(struct call *call, task_body body, size_t floats, int tasks) {
    if (!ends_are_sound(call)) return 2;
    if (call->threads > tasks) call->threads = tasks;
    if (call->threads > MOST_THREADS) call->threads = MOST_THREADS;
    if (call->threads < 1) return 0;
    call->scratch_floats = (floats + 15) / 16 * 16;
    size_t bytes = call->scratch_floats * call->threads * sizeof(float);
    call->scratch = aligned_alloc(64, bytes);
    if (!call->scratch) return 1;
    memset(call->scratch, 0, bytes);
    run_parallel(body, call, tasks, call->threads);
    free(call->scratch);
    return 0;
}

static int whole_vectors(int size) { return (size + LANES - 1) / LANES * LANES; }

int wkv7_forward(int batch, int time, int heads, int size, int sequences, int span, int dtype, int threads, int keep,
                 const int32_t *ends, const void *r, const float *log_w, const void *k, const void *v, const void *a,
                 const void *b, const float *state, void *y, float *last, float *entries) {
    struct call call = {.time = time, .heads = heads, .size = size, .sequences = sequences, .span = span,
                        .dtype = dtype, .keep = keep, .ends = ends, .r = r, .log_w = log_w, .k = k, .v = v, .a = a,
                        .b = b, .state = state, .y = y, .last = last, .entries = entries,
                        .stride = whole_vectors(size), .parts = 1};
    (void)batch, (void)threads;
    int all = sequences * heads;
    int64_t work = (int64_t)batch * time * heads * size * size;
    call.threads = work < WORTH_A_THREAD ? 1 : threads;
    if (time == 1 && !ends && !keep) return run(&call, step_task, 7 * (size_t)call.stride, all);
    int vectors = call.stride / LANES;
    while (all * call.parts < call.threads && call.parts < vectors) call.parts++;
    return run(&call, forward_task, forward_floats(size, call.stride), all * call.parts);
}

int wkv7_backward(int batch, int time, int heads, int size, int sequences, int span, int dtype, int threads,
                  const int32_t *ends, const void *r, const float *log_w, const void *k, const void *v, const void *a,
                  const void *b, const float *entries, const void *d_y, const float *d_last, void *d_r, float *d_log_w,
                  void *d_k, void *d_v, void *d_a, void *d_b, float *d_state) {
    (void)batch;
    struct call call = {.time = time, .heads = heads, .size = size, .sequences = sequences, .span = span,
                        .dtype = dtype, .threads = threads, .ends = ends, .r = r, .log_w = log_w, .k = k, .v = v,
                        .a = a, .b = b, .entries = (float *)entries, .d_y = d_y, .d_last = d_last, .d_r = d_r,
                        .d_log_w = d_log_w, .d_k = d_k, .d_v = d_v, .d_a = d_a, .d_b = d_b, .d_state = d_state,
                        .stride = whole_vectors(size)};
    struct desk desk;
    call.pieces = ((time < span ? time : span) + PIECE - 1) / PIECE;
    return run(&call, backward_task, lay_out(&desk, NULL, call.stride, call.pieces), sequences * heads);
}
