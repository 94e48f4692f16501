// A piece of a sequence as one affine map of its entry state, and the entry states of all pieces from these maps.
//
// WKV-7 treats the rows (values) of its state alike, so that any number of steps amount to
//
//   S_out = S_in M + D,   M (keys, keys), D (values, keys).
//
// M is what the steps make of the identity when nothing is added (v = 0), D what they make of zeros. So [D; M] is a
// state of 2 N rows, and one block carries it through its piece in chunks of 16 steps. Within a chunk, with
// P_t = w_1 .. w_t (rows are steps, C = 16):
//
//   A~ = a P_{t-1},  B^ = b / P_t,  K^ = k / P_t,  Aab = tril(A~ B^^T, -1),  Aak = tril(A~ K^^T, -1)
//   (I - Aab) W = A~,   (I - Aab) X = Aak V                      by forward substitution, a thread a column
//   U = W S^T + X,   S <- S diag(P_C) + U^T (b P_C / P_t) + V^T (k P_C / P_t)
//
// with X and V for the rows of D only. A warp carries 16 rows in the accumulators of its tensor cores, in fp32. Operands
// are bf16; fp32 inputs are split into bf16 high and low parts and cost three products for one (relative error 2^-16).
// log_w >= -0.6065 keeps 1 / P_t below 1.7e4.
//
// Fixed when compiled: HEAD_SIZE (N, a multiple of 16 up to 128), INPUT (0 bf16, 1 fp16, 2 fp32). Needs sm_80.
// Tensors are (B, T, H, N); states, M and D are (pieces, H, N, N).

#include "primitives.h"

constexpr int HEAD = HEAD_SIZE;
constexpr int BF16 = 0, FP32 = 2;  // formats of the inputs; 1 is fp16
constexpr int CHUNK = 16;
constexpr int CHUNKS = HEAD <= 64 ? 2 : 1;  // prepared together
constexpr int TERMS = INPUT == FP32 ? 2 : 1;   // bf16 numbers that an operand is the sum of
constexpr int PARTS = HEAD <= 64 ? 1 : 2;   // blocks that share [D; M]: a warp's rows of large heads take many registers
constexpr int THREADS = 4 * HEAD / PARTS;
constexpr int WARPS = THREADS / 32;
constexpr int COLUMN = CHUNK + 8;   // keeps the columns of eight neighbours in different banks
constexpr int COLUMN_X = CHUNK + 4;

static_assert(HEAD % 16 == 0 && HEAD <= 128, "");
static_assert(THREADS == 2 * HEAD * CHUNKS, "every thread prepares a column");

using Plane = unsigned short[HEAD][COLUMN];  // bf16 [key or value][step]
using Square = float[CHUNK][CHUNK];          // [step][earlier step]

struct Chunk {
    Plane a[TERMS];  // A~, later W
    Plane b[TERMS];  // B^, later with K^ the place of X: float [value][step]
    Plane k[TERMS];
    Plane b_end[TERMS];  // b P_C / P_t
    Plane k_end[TERMS];
    Plane v[TERMS];
    Square ab, ak;
    float decay[HEAD];  // P_C
};

using ColumnsX = float[HEAD][COLUMN_X];
static_assert(sizeof(ColumnsX) <= 2 * sizeof(Plane), "X takes the place of B^ and K^");

DEVICE ColumnsX& columns_x(Chunk& chunk) { return *reinterpret_cast<ColumnsX*>(chunk.b); }

struct alignas(8) Two {
    float x, y;
};

struct alignas(16) Four {
    float x[4];
};

DEVICE float read(const void* from, long long index) {
    if constexpr (INPUT == FP32) return static_cast<const float*>(from)[index];
    unsigned short half = static_cast<const unsigned short*>(from)[index];
    return INPUT == BF16 ? bf16_to_float(half) : half_to_float(half);
}

// A pair of numbers as TERMS pairs of bf16, the rounding of each in the next.
DEVICE void split(unsigned (&pair)[TERMS], float x, float y) {
#pragma unroll
    for (int i = 0; i < TERMS; i++) {
        pair[i] = pack_bf16(x, y);
        x -= bf16_to_float(static_cast<unsigned short>(pair[i]));
        y -= bf16_to_float(static_cast<unsigned short>(pair[i] >> 16));
    }
}

DEVICE void store_column(Plane (&planes)[TERMS], int column, const float (&x)[CHUNK]) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 8) {
        unsigned pairs[4][TERMS];
#pragma unroll
        for (int j = 0; j < 4; j++) split(pairs[j], x[i + 2 * j], x[i + 2 * j + 1]);
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            Vector4* place = reinterpret_cast<Vector4*>(&planes[term][column][i]);
            *place = {pairs[0][term], pairs[1][term], pairs[2][term], pairs[3][term]};
        }
    }
}

// Operands of a product 16 x 16 by 16 x 8.
struct Left {
    unsigned term[TERMS][4];
};

struct Right {
    unsigned term[TERMS][2];
};

DEVICE void multiply_add(float (&d)[4], const Left& left, const Right& right) {
#pragma unroll
    for (int i = 0; i < TERMS; i++)
#pragma unroll
        for (int j = 0; i + j < TERMS; j++) mma_bf16(d, left.term[i], right.term[j]);
}

// The left operand that two neighbouring results 16 x 8 are.
DEVICE Left operand(const float (&low)[4], const float (&high)[4]) {
    unsigned pairs[4][TERMS];
    split(pairs[0], low[0], low[1]);
    split(pairs[1], low[2], low[3]);
    split(pairs[2], high[0], high[1]);
    split(pairs[3], high[2], high[3]);
    Left left;
#pragma unroll
    for (int term = 0; term < TERMS; term++)
#pragma unroll
        for (int i = 0; i < 4; i++) left.term[term][i] = pairs[i][term];
    return left;
}

// The lane's place in the square of four matrices 8 x 8 at a row of a plane, the second matrix below or beside the first.
DEVICE const void* place_below(const Plane& plane, int row) {
    int lane = thread_x() % 32;
    return &plane[row + lane % 16][lane / 16 * 8];
}

DEVICE const void* place_beside(const Plane& plane, int row) {
    int lane = thread_x() % 32;
    return &plane[row + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
}

DEVICE void as_rights(Right (&rights)[2], int term, const unsigned (&r)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) rights[i / 2].term[term][i % 2] = r[i];
}

// Rows of a plane as the left operand (rows, steps) or, transposed, (steps, rows).
DEVICE Left left_rows(const Plane (&planes)[TERMS], int row) {
    Left left;
#pragma unroll
    for (int term = 0; term < TERMS; term++) ldmatrix_x4(left.term[term], place_below(planes[term], row));
    return left;
}

DEVICE Left left_steps(const Plane (&planes)[TERMS], int row) {
    Left left;
#pragma unroll
    for (int term = 0; term < TERMS; term++) ldmatrix_x4_trans(left.term[term], place_beside(planes[term], row));
    return left;
}

// The same rows as two right operands: (rows, steps 0 to 7) and (rows, steps 8 to 15), or (steps, 8 rows) and
// (steps, next 8 rows).
DEVICE void rights_rows(Right (&rights)[2], const Plane (&planes)[TERMS], int row) {
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        unsigned r[4];
        ldmatrix_x4_trans(r, place_below(planes[term], row));
        as_rights(rights, term, r);
    }
}

DEVICE void rights_steps(Right (&rights)[2], const Plane (&planes)[TERMS], int row) {
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        unsigned r[4];
        ldmatrix_x4(r, place_beside(planes[term], row));
        as_rights(rights, term, r);
    }
}

// square = A~ planes^T, of which what is below the diagonal will be read.
DEVICE void compare(Square& square, const Plane (&a)[TERMS], const Plane (&planes)[TERMS]) {
    float d[2][4] = {};
#pragma unroll
    for (int key = 0; key < HEAD; key += 16) {
        Left left = left_steps(a, key);
        Right rights[2];
        rights_rows(rights, planes, key);
        multiply_add(d[0], left, rights[0]);
        multiply_add(d[1], left, rights[1]);
    }
    const int row = thread_x() % 32 / 4, column = thread_x() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        *reinterpret_cast<Two*>(&square[row][8 * i + column]) = {d[i][0], d[i][1]};
        *reinterpret_cast<Two*>(&square[row + 8][8 * i + column]) = {d[i][2], d[i][3]};
    }
}

// sum plus the products of the first `count` numbers of a row of a square with x.
DEVICE float add_earlier(float sum, const float (&weights)[CHUNK], const float (&x)[CHUNK], int count) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) {
        if (i >= count) break;
        const Four four = *reinterpret_cast<const Four*>(&weights[i]);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < count) sum += four.x[j] * x[i + j];
    }
    return sum;
}

// x becomes the solution of (I - square) solution = x.
DEVICE void substitute(float (&x)[CHUNK], const Square& square) {
#pragma unroll
    for (int t = 1; t < CHUNK; t++) x[t] = add_earlier(x[t], square[t], x, t);
}

// Grid: pieces * H, PARTS. `cu_seqlens` (pieces + 1,) may be null: then there are B pieces of `time` steps.
KERNEL(THREADS, (HEAD <= 64 ? 2 : 1))
void wkv7_affine(const float* log_w, const void* k, const void* v, const void* a, const void* b, const int* cu_seqlens,
                 float* m, float* d, int time, int heads) {
    DYNAMIC_SHARED(memory);
    Chunk* chunks = reinterpret_cast<Chunk*>(memory);
    const int piece = block_x() / heads, head = block_x() % heads;
    const long long begin = cu_seqlens ? cu_seqlens[piece] : static_cast<long long>(piece) * time;

    // A thread prepares a key's column of a chunk, or a value's together with what a key's k needs.
    const int column = thread_x() % HEAD, role = thread_x() / HEAD;
    const bool of_key = role < CHUNKS;
    Chunk& own = chunks[role % CHUNKS];
    const int first = role % CHUNKS * CHUNK;  // step of the own chunk
    const int stride = heads * HEAD;          // from a step to the next
    long long place = (begin + first) * stride + head * HEAD + column;

    // Warps carry D's rows, then M's.
    const int warp = thread_x() / 32, row = thread_x() % 32 / 4, two = thread_x() % 4 * 2;
    const bool carries_d = PARTS == 1 ? warp < HEAD / 16 : block_y() == 0;
    const int first_row = warp % (HEAD / 16) * 16;
    float s[HEAD / 8][4];
#pragma unroll
    for (int i = 0; i < HEAD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            s[i][j] = !carries_d && first_row + row + j / 2 * 8 == 8 * i + two + j % 2 ? 1.0f : 0.0f;

    int remaining = cu_seqlens ? cu_seqlens[piece + 1] - cu_seqlens[piece] : time;
    for (; remaining > 0; remaining -= CHUNK * CHUNKS) {
        float x[CHUNK];  // a column of A~, of V
        barrier();
        const int steps = remaining - first;
        float decays[CHUNK], factor[CHUNK];
#pragma unroll
        for (int t = 0; t < CHUNK; t++) decays[t] = t < steps ? log_w[place + t * stride] : 0;
#pragma unroll
        for (int t = 0; t < CHUNK; t++) x[t] = t < steps ? read(of_key ? a : v, place + t * stride) : 0;
#pragma unroll
        for (int t = 0; t < CHUNK; t++) factor[t] = t < steps ? read(of_key ? b : k, place + t * stride) : 0;
        place += CHUNK * CHUNKS * stride;
        if (!of_key) store_column(own.v, column, x);
        float sum = 0;
#pragma unroll
        for (int t = 0; t < CHUNK; t++) {
            if (of_key) x[t] *= exp_fast(sum);
            sum += decays[t];
            factor[t] *= exp_fast(-sum);
        }
        if (of_key) store_column(own.a, column, x);
        store_column(of_key ? own.b : own.k, column, factor);
        const float decay = exp_fast(sum);
#pragma unroll
        for (int t = 0; t < CHUNK; t++) factor[t] *= decay;
        store_column(of_key ? own.b_end : own.k_end, column, factor);
        if (of_key) own.decay[column] = decay;
        barrier();
        for (int job = warp; job < 2 * CHUNKS; job += WARPS) {
            Chunk& chunk = chunks[job / 2];
            if (job % 2 == 0) {
                compare(chunk.ab, chunk.a, chunk.b);
            } else {
                compare(chunk.ak, chunk.a, chunk.k);
            }
        }
        barrier();
        if (of_key) {
            substitute(x, own.ab);
            store_column(own.a, column, x);
        } else {
            float solved[CHUNK];
#pragma unroll
            for (int t = 0; t < CHUNK; t++) solved[t] = add_earlier(0, own.ak[t], x, t);
            substitute(solved, own.ab);
#pragma unroll
            for (int t = 0; t < CHUNK; t += 4)
                *reinterpret_cast<Four*>(&columns_x(own)[column][t]) = {solved[t], solved[t + 1], solved[t + 2],
                                                                        solved[t + 3]};
        }
        barrier();
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c++) {
            Chunk& chunk = chunks[c];
            float u[2][4] = {};
            Left added = {};
            if (carries_d) {
                added = left_rows(chunk.v, first_row);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Two pair = *reinterpret_cast<Two*>(
                        &columns_x(chunk)[first_row + row + i % 2 * 8][i / 2 * 8 + two]);
                    u[i / 2][i % 2 * 2] = pair.x;
                    u[i / 2][i % 2 * 2 + 1] = pair.y;
                }
            }
#pragma unroll
            for (int key = 0; key < HEAD; key += 16) {
                Left left = operand(s[key / 8], s[key / 8 + 1]);
                Right rights[2];
                rights_rows(rights, chunk.a, key);
                multiply_add(u[0], left, rights[0]);
                multiply_add(u[1], left, rights[1]);
            }
            Left removed = operand(u[0], u[1]);
#pragma unroll
            for (int key = 0; key < HEAD; key += 16) {
                Right b_end[2], k_end[2] = {};
                rights_steps(b_end, chunk.b_end, key);
                if (carries_d) rights_steps(k_end, chunk.k_end, key);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float(&part)[4] = s[key / 8 + i];
                    const Two decay = *reinterpret_cast<Two*>(&chunk.decay[key + 8 * i + two]);
                    part[0] *= decay.x;
                    part[1] *= decay.y;
                    part[2] *= decay.x;
                    part[3] *= decay.y;
                    multiply_add(part, removed, b_end[i]);
                    if (carries_d) multiply_add(part, added, k_end[i]);
                }
            }
        }
    }

    float* to = (carries_d ? d : m) + static_cast<long long>(block_x()) * HEAD * HEAD + first_row * HEAD;
#pragma unroll
    for (int i = 0; i < HEAD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j += 2)
            *reinterpret_cast<Two*>(&to[(row + 4 * j) * HEAD + 8 * i + two]) = {s[i][j], s[i][j + 1]};
}

// Cuts sequences into pieces of `steps`. Sequence q owns the pieces first[q] to first[q + 1] - 1, where first[q] is
// cu_seqlens[q] / steps + q, so that their number is known without looking at cu_seqlens; some are empty. Piece p has the
// steps from starts[p] to starts[p + 1]. last[q] = first[q + 1] - 1. Grid: sequences.
KERNEL(32, 1)
void wkv7_pieces(const int* cu_seqlens, int* starts, int* first, int* last, int time, int sequences, int steps) {
    const int sequence = block_x();
    const int begin = cu_seqlens ? cu_seqlens[sequence] : sequence * time;
    const int end = cu_seqlens ? cu_seqlens[sequence + 1] : begin + time;
    const int own = begin / steps + sequence, next = end / steps + sequence + 1;
    for (int i = thread_x(); i < next - own; i += 32) {
        const int start = begin + i * steps;
        starts[own + i] = start < end ? start : end;
    }
    if (thread_x() == 0) {
        first[sequence] = own;
        last[sequence] = next - 1;
        if (sequence == sequences - 1) {
            first[sequences] = next;
            starts[next] = end;
        }
    }
}

// The state before each piece: pieces first[q] to first[q + 1] - 1 follow one another, from state q (null: zeros).
// Grid: sequences * H, HEAD / 16. A block carries 16 rows of the state, a thread 4 of them in one key, in fp32.
KERNEL(4 * HEAD, 1)
void wkv7_combine(const float* m, const float* d, const float* state, const int* first, float* entries, int heads) {
    constexpr int ROWS = 4, GROUPS = 4;
    SHARED Four carried[HEAD][GROUPS];
    const int sequence = block_x() / heads, head = block_x() % heads;
    const int key = thread_x() % HEAD, group = thread_x() / HEAD;
    const int place = (block_y() * ROWS * GROUPS + group * ROWS) * HEAD + key;  // of the thread's first number in a state
    Four own = {};
    if (state) {
#pragma unroll
        for (int q = 0; q < ROWS; q++)
            own.x[q] = state[static_cast<long long>(block_x()) * HEAD * HEAD + place + q * HEAD];
    }
    for (int piece = first[sequence]; piece < first[sequence + 1]; piece++) {
        const long long at = (static_cast<long long>(piece) * heads + head) * HEAD * HEAD;
        barrier();
        carried[key][group] = own;
        barrier();
#pragma unroll
        for (int q = 0; q < ROWS; q++) {
            entries[at + place + q * HEAD] = own.x[q];
            own.x[q] = d[at + place + q * HEAD];
        }
#pragma unroll 64
        for (int i = 0; i < HEAD; i++) {
            const float weight = m[at + i * HEAD + key];
            const Four rows = carried[i][group];
#pragma unroll
            for (int q = 0; q < ROWS; q++) own.x[q] += rows.x[q] * weight;
        }
    }
}
