// Matrix products with few vectors: y = W x for 8 vectors x at a time, limited by reading W once.
//
// A block takes 16 rows of W, its warps share the columns. The tensor cores take the vectors as their 8 columns, so
// eight cost what one does. A sum over columns does not ask for their order: lane 4 g + c loads 16 bytes of row g and
// of row g + 8 at a time, straight into the operands' registers, and the vectors in the same order. Several matrices
// go in one launch, each with vectors of its own.
//
// B vectors. Fixed when compiled: NUMBER, the type of weights and vectors (0 fp32, which takes no tensor cores, 1
// bf16, 2 fp16); INT8, 1 where matrices with scales hold 8-bit integers (NUMBER is 1 or 2 then); SEGMENTS, the
// matrices; WARPS.
//
// An 8-bit matrix has a scale (bf16) for every 64 neighbouring inputs of an output: (rows, columns / 64), and of each
// 64 weights, 16 j + i is byte 4 i + j. Its integers are exact in the vectors' type, so the tensor cores multiply
// those, and what they sum over a group is scaled in fp32.

#include "numbers.h"

using Element = Stored<NUMBER>;
constexpr int GROUP = 64;                                         // inputs of a scale
constexpr int ELEMENTS = 16 / static_cast<int>(sizeof(Element));  // in 16 bytes

// A matrix (rows, columns) and where its vectors and products lie: vector b at (x * B + b * columns), product at
// (y * B + b * rows), both in numbers.
struct Segment {
    int rows, columns, x, y, kind;
};
enum Kind { PRODUCT, SQUARE_POSITIVE, PLAIN, TANH, SIGMOID };  // the first two give fp32, the others vectors

constexpr int TILE = 16;    // rows of W that a block takes
constexpr int VECTORS = 8;  // that it multiplies them with
constexpr int UNROLL = INT8 ? 2 : 4;  // loads of 16 bytes in flight, for each of a lane's two rows
constexpr int THREADS = 32 * WARPS;
// Threads that a processor holds, by the registers that they need.
constexpr int RESIDENT = NUMBER == 0 ? 512 : INT8 ? 640 : WARPS < 4 ? 768 : 1024;

DEVICE float activated(float x, int kind) {
    if (kind == SQUARE_POSITIVE) return x < 0.0f ? 0.0f : x * x;
    if (kind == SIGMOID) return sigmoid(x);
    if (kind == TANH) {
        float square = x * x;  // the other form loses digits near 0
        if (square < 0.0625f)
            return x - x * square * (1.0f / 3 - square * (2.0f / 15 - square * (17.0f / 315 - square * 62.0f / 2835)));
        return 2.0f * sigmoid(2.0f * x) - 1.0f;
    }
    return x;
}

// What a lane knows of its work: row g and row g + 8 of its tile (null past the matrix's end), and its vectors.
struct Work {
    const unsigned char* rows[2];
    const unsigned short* scales[2];
    const Element* x;
    int columns, vectors;
};

// For each of UNROLL steps from `first` on, the lane's 16 bytes of both rows; zeros past the matrix.
DEVICE void load_weights(Vector4 (&w)[UNROLL][2], const Work& work, int first, int step, int bytes) {
#pragma unroll
    for (int j = 0; j < UNROLL; j++) {
        int column = (first + j) * step + thread_x() % 4 * (step / 4);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool wanted = work.rows[i] && column < work.columns;
            w[j][i] = wanted ? load_16_streaming(work.rows[i] + column * bytes) : Vector4{0, 0, 0, 0};
        }
    }
}

// The lane's share of the products: sum[0] and [1] are row g with the vectors 2 c and 2 c + 1, sum[2], [3] row g + 8.
#if NUMBER == 0
DEVICE void multiply(float (&sum)[4], const Work& work) {
    constexpr int STEP = 4 * ELEMENTS;
    int c = thread_x() % 4;
    int steps = (work.columns + STEP - 1) / STEP;
    float upper[VECTORS] = {}, lower[VECTORS] = {};
    for (int first = thread_x() / 32 * UNROLL; first < steps; first += WARPS * UNROLL) {
        Vector4 w[UNROLL][2];
        load_weights(w, work, first, STEP, sizeof(Element));
#pragma unroll
        for (int j = 0; j < UNROLL; j++) {
            int column = (first + j) * STEP + c * ELEMENTS;
            if (column >= work.columns) continue;
#pragma unroll
            for (int n = 0; n < VECTORS; n++) {
                if (n >= work.vectors) continue;
                Vector4 x = load_16(work.x + static_cast<long long>(n) * work.columns + column);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    upper[n] += bits_to_float(part(w[j][0], e)) * bits_to_float(part(x, e));
                    lower[n] += bits_to_float(part(w[j][1], e)) * bits_to_float(part(x, e));
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < VECTORS; n++) {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) {
            upper[n] += shuffle_xor(upper[n], mask);
            lower[n] += shuffle_xor(lower[n], mask);
        }
        if (n / 2 != c) continue;
        sum[n % 2] = upper[n];
        sum[2 + n % 2] = lower[n];
    }
}
#else
DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if (NUMBER == 1)
        mma_bf16(d, a, b);
    else
        mma_half(d, a, b);
}

// The lane's part of vector g: 8 numbers from `column` on.
DEVICE Vector4 load_vector(const Work& work, int column) {
    int g = thread_x() % 32 / 4;
    if (g >= work.vectors || column >= work.columns) return {0, 0, 0, 0};
    return load_16(work.x + static_cast<long long>(g) * work.columns + column);
}

DEVICE void multiply(float (&sum)[4], const Work& work) {
    constexpr int STEP = 4 * ELEMENTS;
    int c = thread_x() % 4;
    int steps = (work.columns + STEP - 1) / STEP;
    for (int first = thread_x() / 32 * UNROLL; first < steps; first += WARPS * UNROLL) {
        Vector4 w[UNROLL][2];
        load_weights(w, work, first, STEP, sizeof(Element));
#pragma unroll
        for (int j = 0; j < UNROLL; j++) {
            Vector4 x = load_vector(work, (first + j) * STEP + c * ELEMENTS);
            mma(sum, {w[j][0].x, w[j][1].x, w[j][0].y, w[j][1].y}, {x.x, x.y});
            mma(sum, {w[j][0].z, w[j][1].z, w[j][0].w, w[j][1].w}, {x.z, x.w});
        }
    }
}
#endif

#if INT8
// Byte j of two words, as an operand.
DEVICE unsigned operand(unsigned low, unsigned high, int j) {
    return Number<NUMBER>::pack(byte_to_float(low, j), byte_to_float(high, j));
}

struct alignas(8) Pair {
    unsigned low, high;
};

// The same for 8-bit weights: the 16 bytes of four lanes are a group. Byte j of a lane's word q is its weight
// 16 j + 4 c + q, so that the same byte of all words goes with neighbouring numbers of a vector.
DEVICE void multiply_int8(float (&sum)[4], const Work& work) {
    int g = thread_x() % 32 / 4, c = thread_x() % 4;
    int steps = work.columns / GROUP;
    for (int first = thread_x() / 32 * UNROLL; first < steps; first += WARPS * UNROLL) {
        Vector4 w[UNROLL][2];
        float scale[UNROLL][2];
        load_weights(w, work, first, GROUP, 1);
#pragma unroll
        for (int j = 0; j < UNROLL; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bool wanted = work.rows[i] && first + j < steps;
                scale[j][i] = wanted ? bf16_to_float(work.scales[i][first + j]) : 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < UNROLL; j++) {
            float group[4] = {};
            Vector4 upper = w[j][0], lower = w[j][1];
#pragma unroll
            for (int b = 0; b < 4; b++) {
                Pair x{0, 0};
                int column = (first + j) * GROUP + 16 * b + 4 * c;
                if (g < work.vectors && column < work.columns)
                    x = *reinterpret_cast<const Pair*>(work.x + static_cast<long long>(g) * work.columns + column);
                mma(group,
                    {operand(upper.x, upper.y, b), operand(lower.x, lower.y, b), operand(upper.z, upper.w, b),
                     operand(lower.z, lower.w, b)},
                    {x.low, x.high});
            }
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += scale[j][i / 2] * group[i];
        }
    }
}
#endif

// Products of up to 7 matrices with their vectors. Matrix i is SEGMENTS[i], its weights are w_i and, of 8-bit ones, its
// scales s_i (null for others). fp32 results go to `products`, vectors to `vectors`. Grid (tiles of all matrices, B / 8
// rounded up).
KERNEL(THREADS, RESIDENT / THREADS)
void matvec(const Element* x, float* products, Element* vectors, int batch, const void* w0, const void* w1,
            const void* w2, const void* w3, const void* w4, const void* w5, const void* w6, const unsigned short* s0,
            const unsigned short* s1, const unsigned short* s2) {
    constexpr Segment segments[] = SEGMENTS;
    constexpr int COUNT = sizeof segments / sizeof segments[0];
    const void* weights[7] = {w0, w1, w2, w3, w4, w5, w6};
    const unsigned short* scales[7] = {s0, s1, s2, nullptr, nullptr, nullptr, nullptr};
    Segment mine{};
    const void* matrix = nullptr;
    const unsigned short* scale = nullptr;
    int tile = block_x(), row = -1;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        int tiles = (segments[i].rows + TILE - 1) / TILE;
        if (row < 0 && tile < tiles) {
            mine = segments[i];
            matrix = weights[i];
            scale = scales[i];
            row = tile * TILE;
        }
        tile -= tiles;
    }
    int first_vector = block_y() * VECTORS;
    int lane = thread_x() % 32, g = lane / 4, c = lane % 4;
    Work work{};
    work.columns = mine.columns;
    work.vectors = batch - first_vector < VECTORS ? batch - first_vector : VECTORS;
    work.x = x + static_cast<long long>(mine.x) * batch + static_cast<long long>(first_vector) * mine.columns;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (row + g + 8 * i >= mine.rows) continue;
        long long at = static_cast<long long>(row + g + 8 * i) * mine.columns;
        bool bytes = INT8 && scale;
        work.rows[i] = static_cast<const unsigned char*>(matrix) + at * (bytes ? 1 : sizeof(Element));
        if (bytes) work.scales[i] = scale + at / GROUP;
    }

    float sum[4] = {};
#if INT8
    if (scale)
        multiply_int8(sum, work);
    else
#endif
        multiply(sum, work);

    SHARED float sums[WARPS][VECTORS][TILE];
#pragma unroll
    for (int i = 0; i < 4; i++) sums[thread_x() / 32][2 * c + i % 2][g + 8 * (i / 2)] = sum[i];
    barrier();
    for (int i = thread_x(); i < VECTORS * TILE; i += THREADS) {
        int at_row = row + i % TILE, vector = i / TILE;
        if (at_row >= mine.rows || vector >= work.vectors) continue;
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += sums[warp][vector][i % TILE];
        total = activated(total, mine.kind);
        long long begin = static_cast<long long>(mine.y) * batch;
        long long at = begin + static_cast<long long>(first_vector + vector) * mine.rows + at_row;
        if (mine.kind <= SQUARE_POSITIVE)
            products[at] = total;
        else
            vectors[at] = Number<NUMBER>::narrow(total);
    }
}
