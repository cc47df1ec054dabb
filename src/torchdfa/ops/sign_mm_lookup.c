/* Table lookup ("four Russians"; BiQGEMM, Jeon et al., 2020).

   The signs of 8 rows in one column are a byte. For 8 rows and W rows of e there are 256 possible partial sums
   of W numbers; they are tabulated once and looked up for each column: W * 8 multiply-adds for one load and one add.
   Sums are plain float32 additions of +e and -e, so inf and nan go the way they go in a matrix product. */
#define GROUPS 16             /* bytes a column, so 128 rows, that are tabulated at a time */
#define DEPTH (8 * GROUPS)
#define CHUNK 32              /* rows of e whose sums are held at a time */

typedef float f2 __attribute__((vector_size(8)));
typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));

typedef struct {
    float *table, *sums;
    uint64_t *index;
} Scratch;

/* Keeps gcc from adding the table's offset to each index anew. */
#define ONE_REGISTER(pointer) __asm__("" : "+r"(pointer))
/* Keeps a word where its two low bytes can be read without a shift. */
#ifdef __x86_64__
#define BYTE_REGISTER(word) __asm__("" : "+Q"(word))
#else
#define BYTE_REGISTER(word)
#endif

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
                    BYTE_REGISTER(bytes);                                                                    \
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
FOR_WIDTH(16, f16)

INLINE int width_for(int64_t rows, int widest) {
    return rows > 8 ? widest : rows > 4 ? 8 : rows > 2 ? 4 : (int)rows;
}

/* Rows of sums that m rows of e need: all of the widest but the last. */
INLINE int64_t held_rows(int64_t m, int widest) { return m / widest * widest + width_for(m % widest, widest); }

#define WITH_WIDTH(w, call)                                                                                   \
    switch (w) {                                                                                              \
        case 1: call(1); break;                                                                               \
        case 2: call(2); break;                                                                               \
        case 4: call(4); break;                                                                               \
        case 8: call(8); break;                                                                               \
        default: if (widest == 16) call(16);                                                                  \
    }

/* Columns n0 to n1 (n0 a multiple of BLOCK) of rows m0 to m1. */
INLINE void look_up_tile(const Product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, Scratch s, int widest) {
    int64_t columns = whole_blocks(n1 - n0);
    memset(s.sums, 0, sizeof(float) * columns * held_rows(m1 - m0, widest));
    for (int64_t row = 0; row < p->k; row += DEPTH) {
        int groups = groups_from(p, row, GROUPS);
        for (int g = 0; g < groups; g++) repack(p, row + 8 * g, g, GROUPS, n0, columns, s.index);
        for (int64_t m = m0; m < m1; m += widest) {
            float *sums = s.sums + (m - m0) * columns;
#define STEP(W)                                                                                               \
            do {                                                                                              \
                tabulate_##W(p, m, row, s.table);                                                             \
                for (int64_t c = 0; c < columns; c += BLOCK)                                                  \
                    look_up_##W(s.table, s.index + c / 8 * GROUPS, groups, sums + c * W);                     \
            } while (0)
            WITH_WIDTH(width_for(m1 - m, widest), STEP)
        }
    }
    for (int64_t m = m0; m < m1; m += widest) {
#define WRITE(W) write_##W(p, m, n0, n1, s.sums + (m - m0) * columns)
        WITH_WIDTH(width_for(m1 - m, widest), WRITE)
    }
}

/* Columns n0 to n1, with up to `widest` (8 or 16) rows of e at a time; 1 where memory runs out. */
INLINE int look_up(const Product *p, int64_t n0, int64_t n1, int widest) {
    int64_t columns = whole_blocks(n1 - n0), held = held_rows(p->m < CHUNK ? p->m : CHUNK, widest);
    size_t table = sizeof(float) * 256 * width_for(p->m, widest) * GROUPS, index = columns * GROUPS;
    char *memory = aligned_alloc(64, table + index + sizeof(float) * columns * held);
    if (memory == NULL) return 1;
    Scratch s = {(float *)memory, (float *)(memory + table + index), (uint64_t *)(memory + table)};
    for (int64_t m = 0; m < p->m; m += CHUNK)
        look_up_tile(p, m, m + CHUNK < p->m ? m + CHUNK : p->m, n0, n1, s, widest);
    free(memory);
    return 0;
}
