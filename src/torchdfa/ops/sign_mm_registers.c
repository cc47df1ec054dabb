/* Table lookup for one or two rows of e where a table fits a register: AVX-512.

   The 16 sums of 4 rows are one vector; half an index byte picks one of them in each of 16 columns at once. Sums are
   added in the order of sign_mm_lookup.c, so that both give the same bits. But for one instruction the body is plain
   vector code: without AVX-512 it is slow and gives the same bits too, which is how it is tested where there is none. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) /* clang has no __builtin_shuffle */
#define REGISTERS

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint32_t lanes __attribute__((vector_size(64)));

/* 16 bytes as 16 words. gcc (12) takes the general form apart into single bytes. */
#ifdef TORCHDFA_EMULATE
#define WIDEN(to, from) to = __builtin_convertvector(from, lanes)
#else
#define WIDEN(to, from) __asm__("vpmovzxbd %1, %0" : "=v"(to) : "m"(from))
#endif

/* The 16 sums of 4 rows of e from `from` on, for its row m. */
INLINE void sums_of_four(const Product *p, int64_t m, int64_t from, float sums[16]) {
    sums[0] = 0;
    for (int i = 0; i < 4; i++) {
        float v = from + i < p->k ? p->e[m * p->e_row + (from + i) * p->e_column] : 0;
        for (int s = 0; s < 1 << i; s++) {
            sums[s + (1 << i)] = sums[s] + v;
            sums[s] -= v;
        }
    }
}

/* table[group][row of e][low, high half of the byte][16 sums] */
INLINE void fill_registers(const Product *p, int64_t row, int groups, int rows, float *table) {
    for (int g = 0; g < groups; g++)
        for (int m = 0; m < rows; m++)
            for (int h = 0; h < 2; h++, table += 16) sums_of_four(p, m, row + 8 * g + 4 * h, table);
}

/* A block of columns; sums[row of e], `apart` floats from one to the next, are laid out as those of width 1. */
INLINE void look_up_registers(const float *table, const uint64_t *index, int groups, int rows, float *sums,
                              int64_t apart) {
    for (int half = 0; half < 2; half++) {
        f16 a[2][8] = {{{0}}};
        for (int g = 0; g < groups; g++) {
            const f16 *t = (const f16 *)table + 2 * rows * g;
            UNROLLED (int j = 0; j < 8; j++) {
                lanes low, high;
                WIDEN(low, ((const bytes16 *)index)[(j * GROUPS + g) * 2 + half]);
                high = low >> 4;
                UNROLLED (int m = 0; m < rows; m++)
                    a[m][j] += __builtin_shuffle(t[2 * m], low) + __builtin_shuffle(t[2 * m + 1], high);
            }
        }
        UNROLLED (int m = 0; m < rows; m++)
            UNROLLED (int j = 0; j < 8; j++) ((f16 *)(sums + m * apart))[2 * j + half] += a[m][j];
    }
}

INLINE void register_tile(const Product *p, int64_t n0, int64_t n1, Scratch s, int rows) {
    int64_t columns = whole_blocks(n1 - n0);
    memset(s.sums, 0, sizeof(float) * columns * rows);
    for (int64_t row = 0; row < p->k; row += DEPTH) {
        int groups = groups_from(p, row, GROUPS);
        for (int g = 0; g < groups; g++) repack(p, row + 8 * g, g, GROUPS, n0, columns, s.index);
        fill_registers(p, row, groups, rows, s.table);
        for (int64_t c = 0; c < columns; c += BLOCK)
            look_up_registers(s.table, s.index + c / 8 * GROUPS, groups, rows, s.sums + c, columns);
    }
    for (int m = 0; m < rows; m++) write_1(p, m, n0, n1, s.sums + m * columns);
}

/* Columns n0 to n1 of at most 2 rows; 1 where memory runs out. */
INLINE int look_up_in_registers(const Product *p, int64_t n0, int64_t n1) {
    int64_t columns = whole_blocks(n1 - n0);
    size_t table = sizeof(float) * 16 * 2 * GROUPS * p->m, index = columns * GROUPS;
    char *memory = aligned_alloc(64, table + index + sizeof(float) * columns * p->m);
    if (memory == NULL) return 1;
    Scratch s = {(float *)memory, (float *)(memory + table + index), (uint64_t *)(memory + table)};
    if (p->m == 1) register_tile(p, n0, n1, s, 1);
    if (p->m == 2) register_tile(p, n0, n1, s, 2);
    free(memory);
    return 0;
}
#endif
