/* out = e @ signs for signs kept as one bit each, by table lookup ("four Russians"; BiQGEMM, Jeon et al., 2020).

   The signs of 8 rows in one column are a byte. For 8 rows and W rows of e there are 256 possible partial sums
   of W numbers; they are tabulated once and looked up for each column: W * 8 multiply-adds for one load and one add.
   Sums are plain float32 additions of +e and -e, so inf and nan go the way they go in a matrix product.

   No headers of torch, no global flags: one generic body, compiled once for each instruction set by function-level
   target attributes; PATHS lists them, best first. Nothing is shared between calls. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define GROUPS 16             /* bytes a column, so 128 rows, that are tabulated at a time */
#define DEPTH (8 * GROUPS)
#define BLOCK 256             /* columns that are repacked at a time: 32 bytes of a row */
#define TILE 4096             /* columns whose sums are held at a time, at most */
#define CHUNK 32              /* rows of e whose sums are held at a time */

typedef float f2 __attribute__((vector_size(8)));
typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef uint64_t words __attribute__((vector_size(32)));

typedef struct {
    const float *e;           /* (m, k), strides in elements */
    int64_t m, k, e_row, e_column;
    const uint8_t *bits;      /* (k, ceil(n / 8)), little-endian */
    int64_t n, bits_row;
    float *out;               /* (m, n), contiguous */
} Product;

typedef struct {
    float *table, *sums;
    uint64_t *index;
} Scratch;

/* Exchange the bits `mask` of b with those `by` places higher of a. */
#define EXCHANGE(a, b, by, mask) do { words t_ = ((a >> by) ^ b) & mask; b ^= t_; a ^= t_ << by; } while (0)

#define UNROLLED _Pragma("GCC unroll 8") for

/* 8 rows of 32 bytes -> byte c of row j holds the 8 bits of column 8 c + j. */
INLINE void transpose_bits(words r[8]) {
    UNROLLED (int i = 0; i < 4; i++) EXCHANGE(r[i], r[i + 4], 4, 0x0f0f0f0f0f0f0f0fu);
    UNROLLED (int i = 0; i < 2; i++) EXCHANGE(r[i], r[i + 2], 2, 0x3333333333333333u);
    UNROLLED (int i = 4; i < 6; i++) EXCHANGE(r[i], r[i + 2], 2, 0x3333333333333333u);
    UNROLLED (int i = 0; i < 8; i += 2) EXCHANGE(r[i], r[i + 1], 1, 0x5555555555555555u);
}

/* Index bytes of 8 rows from `row` on, the group g of those tabulated, for columns n0 to n0 + columns:
   index[block of columns][j][group][32 bytes]. Rows and bytes beyond the matrix are zeros. */
INLINE void repack(const Product *p, int64_t row, int g, int64_t n0, int64_t columns, uint64_t *index) {
    int64_t byte = n0 / 8, width = (p->n + 7) / 8 - byte, step = p->bits_row;
    const uint8_t *source = p->bits + row * step + byte;
    for (int64_t c = 0; c < columns; c += BLOCK, index += 32 * GROUPS, source += 32, width -= 32) {
        words r[8];
        if (row + 8 <= p->k && width >= 32) {
            UNROLLED (int i = 0; i < 8; i++) {
                __builtin_prefetch(source + (8 + i) * step); /* never faults */
                memcpy(&r[i], source + i * step, 32);
            }
        } else {
            words edge[8] = {0};
            for (int i = 0; i < 8 && row + i < p->k; i++) memcpy(&edge[i], source + i * step, width < 32 ? width : 32);
            memcpy(r, edge, sizeof r);
        }
        transpose_bits(r);
        UNROLLED (int j = 0; j < 8; j++) memcpy(index + (j * GROUPS + g) * 4, &r[j], 32);
    }
}

/* Keeps gcc from adding the table's offset to each index anew. */
#define ONE_REGISTER(pointer) __asm__("" : "+r"(pointer))

/* For rows of e taken W at a time: all 256 sums of 8 rows, then their lookup for a block of columns. */
#define FOR_WIDTH(W, V)                                                                                       \
INLINE void tabulate_##W(const Product *p, int64_t m0, int64_t row, float *table) {                          \
    for (int g = 0; g < GROUPS && row + 8 * g < p->k; g++, table += 256 * W) {                               \
        V halves[2][16], *sums = (V *)table;                                                                 \
        for (int h = 0; h < 2; h++) {                                                                        \
            V *half = halves[h];                                                                             \
            half[0] = (V){0};                                                                                \
            for (int i = 0; i < 4; i++) {                                                                    \
                float x[W] __attribute__((aligned(4 * W))) = {0};                                            \
                int64_t from = row + 8 * g + 4 * h + i;                                                      \
                for (int r = 0; r < W && m0 + r < p->m && from < p->k; r++)                                  \
                    x[r] = p->e[(m0 + r) * p->e_row + from * p->e_column];                                   \
                V v = *(const V *)x;                                                                         \
                for (int s = 0; s < 1 << i; s++) { half[s + (1 << i)] = half[s] + v; half[s] = half[s] - v; } \
            }                                                                                                \
        }                                                                                                    \
        for (int high = 0; high < 16; high++)                                                                \
            for (int low = 0; low < 16; low++) sums[16 * high + low] = halves[0][low] + halves[1][high];     \
    }                                                                                                        \
}                                                                                                            \
INLINE void look_up_##W(const float *table, const uint64_t *index, int groups, float *sums) {                \
    for (int j = 0; j < 8; j++)                                                                              \
        for (int c = 0; c < 4; c++) {                                                                        \
            V a[8], *total = (V *)sums + 32 * j + 8 * c;                                                     \
            for (int i = 0; i < 8; i++) a[i] = (V){0};                                                       \
            const V *t = (const V *)table;                                                                   \
            for (int g = 0; g < groups; g++, t += 256) {                                                     \
                uint64_t bytes = index[(j * GROUPS + g) * 4 + c];                                            \
                ONE_REGISTER(t);                                                                             \
                _Pragma("GCC unroll 4")                                                                      \
                for (int i = 0; i < 8; i += 2, bytes >>= 16) {                                               \
                    __asm__("" : "+Q"(bytes));                                                               \
                    a[i] += t[(uint8_t)bytes];                                                               \
                    a[i + 1] += t[(uint8_t)(bytes >> 8)];                                                    \
                }                                                                                            \
            }                                                                                                \
            for (int i = 0; i < 8; i++) total[i] += a[i];                                                    \
        }                                                                                                    \
}                                                                                                            \
INLINE void write_##W(const Product *p, int64_t m0, int64_t n0, int64_t n1, const float *sums) {             \
    for (int64_t n = n0; n < n1; n += 8) {                                                                   \
        const float *octet = sums + ((n - n0) / BLOCK * BLOCK + (n - n0) % BLOCK / 8) * W;                   \
        int columns = n1 - n < 8 ? (int)(n1 - n) : 8;                                                        \
        for (int r = 0; r < W && m0 + r < p->m; r++) {                                                       \
            float *out = p->out + (m0 + r) * p->n + n;                                                       \
            for (int j = 0; j < columns; j++) out[j] = octet[32 * j * W + r];                                \
        }                                                                                                    \
    }                                                                                                        \
}

FOR_WIDTH(1, float)
FOR_WIDTH(2, f2)
FOR_WIDTH(4, f4)
FOR_WIDTH(8, f8)

INLINE int width_for(int64_t rows) { return rows > 4 ? 8 : rows > 2 ? 4 : (int)rows; }

/* Rows of sums that m rows of e need: all of width 8 but the last. */
INLINE int64_t held_rows(int64_t m) { return m / 8 * 8 + width_for(m % 8); }

#define WITH_WIDTH(w, call)                                                                                   \
    switch (w) { case 1: call(1); break; case 2: call(2); break; case 4: call(4); break; default: call(8); }

/* Columns n0 to n1 (n0 a multiple of BLOCK) of rows m0 to m1. */
INLINE void tile(const Product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, Scratch s) {
    int64_t columns = (n1 - n0 + BLOCK - 1) / BLOCK * BLOCK;
    memset(s.sums, 0, sizeof(float) * columns * held_rows(m1 - m0));
    for (int64_t row = 0; row < p->k; row += DEPTH) {
        int64_t left = (p->k - row + 7) / 8;
        int groups = left < GROUPS ? (int)left : GROUPS;
        for (int g = 0; g < groups; g++) repack(p, row + 8 * g, g, n0, columns, s.index);
        for (int64_t m = m0; m < m1; m += 8) {
            float *sums = s.sums + (m - m0) * columns;
#define STEP(W)                                                                                               \
            tabulate_##W(p, m, row, s.table);                                                                 \
            for (int64_t c = 0; c < columns; c += BLOCK)                                                      \
                look_up_##W(s.table, s.index + c / 8 * GROUPS, groups, sums + c * W)
            WITH_WIDTH(width_for(m1 - m), STEP)
        }
    }
    for (int64_t m = m0; m < m1; m += 8) {
#define WRITE(W) write_##W(p, m, n0, n1, s.sums + (m - m0) * columns)
        WITH_WIDTH(width_for(m1 - m), WRITE)
    }
}

INLINE int part(const Product *p, int64_t n0, int64_t n1) {
    int64_t columns = (n1 - n0 + BLOCK - 1) / BLOCK * BLOCK;
    size_t table = sizeof(float) * 256 * width_for(p->m) * GROUPS, index = columns * GROUPS;
    char *memory = aligned_alloc(64, table + index + sizeof(float) * columns * held_rows(p->m < CHUNK ? p->m : CHUNK));
    if (memory == NULL) return 1;
    Scratch s = {(float *)memory, (float *)(memory + table + index), (uint64_t *)(memory + table)};
    for (int64_t m = 0; m < p->m; m += CHUNK) tile(p, m, m + CHUNK < p->m ? m + CHUNK : p->m, n0, n1, s);
    free(memory);
    return 0;
}

typedef int (*Part)(const Product *, int64_t, int64_t);
static int always(void) { return 1; }
static int part_portable(const Product *p, int64_t n0, int64_t n1) { return part(p, n0, n1); }
#ifdef __x86_64__
static int has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }
__attribute__((target("avx2"))) static int part_avx2(const Product *p, int64_t n0, int64_t n1) { return part(p, n0, n1); }
#endif

static const struct { const char *name; int (*runs)(void); Part part; } PATHS[] = {
#ifdef __x86_64__
    {"avx2", has_avx2, part_avx2},
#endif
    {"portable", always, part_portable},
};

/* Name of path i, "" where this processor cannot run it, NULL after the last. */
const char *torchdfa_path(int i) {
    if (i < 0 || i >= (int)(sizeof PATHS / sizeof *PATHS)) return NULL;
    return PATHS[i].runs() ? PATHS[i].name : "";
}

/* Whether it was built to share its work between threads. */
int torchdfa_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Returns 0, or 1 where memory ran out and out is not complete. */
int torchdfa_sign_mm(int path, int threads, const float *e, int64_t m, int64_t k, int64_t e_row, int64_t e_column,
                     const uint8_t *bits, int64_t n, int64_t bits_row, float *out) {
    Product p = {e, m, k, e_row, e_column, bits, n, bits_row, out};
    int64_t blocks = (n + BLOCK - 1) / BLOCK, share = (blocks + threads - 1) / threads;
    int64_t size = (share * BLOCK < TILE ? share * BLOCK : TILE), tiles = size ? (n + size - 1) / size : 0;
    int failed = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed) if (threads > 1)
#endif
    for (int64_t i = 0; i < tiles; i++)
        failed |= PATHS[path].part(&p, i * size, (i + 1) * size < n ? (i + 1) * size : n);
    return failed;
}
