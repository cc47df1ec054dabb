/* Products of tiles: AMX. The error is split in parts of bfloat16, in which +1 and -1 are exact as well.

   A float32 is the sum of three such parts, a float16 of two, a bfloat16 is one; they ride as rows of their own and
   their sums are added at the end, so products lose nothing to the format. A tile of signs is 32 rows of 16 columns in
   pairs of rows t and 16 + t, which is how they lie in a word of 32 signs of a column.

   The tile instructions stand behind six names. -DTORCHDFA_EMULATE gives these a second meaning in plain C: splitting,
   layout and edges are tested with that where there is no AMX. */
#if defined(REGISTERS) && !defined(TORCHDFA_PLAIN) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define TILES
#endif
#endif

#ifdef TILES
#define PANEL 64              /* groups of 8 rows that are multiplied before sums are stored */
#define STEPS (PANEL / 4)     /* tiles of 32 rows in a panel */
#define PARTS_CHUNK 32        /* rows of e whose sums are held at a time */

typedef struct { uint8_t palette, start, zeros[14]; uint16_t bytes[16]; uint8_t rows[16]; } TileShapes;

#ifdef TORCHDFA_EMULATE
static _Thread_local struct { TileShapes shapes; uint8_t data[8][16][64]; } amx;

static void TILES_BEGIN(const TileShapes *shapes) { memset(&amx, 0, sizeof amx); amx.shapes = *shapes; }
static void TILES_END(void) { memset(&amx, 0xff, sizeof amx); }
static void TILE_ZERO(int t) { memset(amx.data[t], 0, sizeof amx.data[t]); }
static void TILE_LOAD(int t, const void *from) {
    for (int r = 0; r < amx.shapes.rows[t]; r++)
        memcpy(amx.data[t][r], (const char *)from + 64 * r, amx.shapes.bytes[t]);
}
static void TILE_STORE(int t, void *to) {
    for (int r = 0; r < amx.shapes.rows[t]; r++) memcpy((char *)to + 64 * r, amx.data[t][r], amx.shapes.bytes[t]);
}
static float bf16_at(int t, int row, int i) {
    uint32_t wide = 0;
    float value;
    memcpy((char *)&wide + 2, &amx.data[t][row][2 * i], 2);
    memcpy(&value, &wide, 4);
    return value;
}
static void TILE_DOT(int c, int a, int b) {
    for (int m = 0; m < amx.shapes.rows[c]; m++)
        for (int n = 0; n < amx.shapes.bytes[c] / 4; n++) {
            float sum, even = 0, odd = 0;
            for (int k = 0; k < amx.shapes.bytes[a] / 4; k++) {
                even += bf16_at(a, m, 2 * k) * bf16_at(b, k, 2 * n);
                odd += bf16_at(a, m, 2 * k + 1) * bf16_at(b, k, 2 * n + 1);
            }
            memcpy(&sum, &amx.data[c][m][4 * n], 4);
            sum += even + odd;
            memcpy(&amx.data[c][m][4 * n], &sum, 4);
        }
}
#else
/* In assembler: gcc's own names do not tell it that they read memory. */
#define TILES_BEGIN(shapes) __asm__ volatile("ldtilecfg %0" : : "m"(*(shapes)) : "memory")
#define TILES_END() __asm__ volatile("tilerelease" : : : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, from) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"(64L) : "memory")
#define TILE_STORE(t, to) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"(64L) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
#endif

typedef struct {
    uint16_t *e;              /* [tile of 16 rows][step][16 rows][32 of k] of a panel */
    uint32_t *signs;          /* [2 tiles of 16 columns][step][16 pairs of rows][16 columns] */
    uint64_t *index;          /* of a block of columns */
    float *sums;              /* [tile of 16 rows][tile of 16 columns][16][16] */
    int parts;
} TileScratch;

INLINE uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* Parts that every element of e is the sum of. */
INLINE int parts_of(const Product *p) {
    uint32_t low = 0;
    for (int64_t m = 0; m < p->m; m++)
        for (int64_t k = 0; k < p->k; k++) {
            uint32_t bits = bits_of(p->e[m * p->e_row + k * p->e_column]);
            if (~bits & 0x7f800000u) low |= bits;
        }
    return low & 0xffu ? 3 : low & 0xffffu ? 2 : 1;
}

/* The leading 8 bits of x, which are taken from it. Of an infinity or nan all is in the first part. */
INLINE uint16_t split(float *x) {
    uint32_t bits = bits_of(*x), leading = bits & 0xffff0000u;
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        *x = 0;
        return (uint16_t)(leading >> 16 | (bits & 0x007fffffu ? 0x40u : 0u));
    }
    float part;
    memcpy(&part, &leading, 4);
    *x -= part;
    return (uint16_t)(leading >> 16);
}

INLINE int64_t row_tiles(int64_t rows, int parts) { return (rows * parts + 15) / 16; }

/* Rows m0 to m1 of e from `row` on, in parts: line `part * (m1 - m0) + m - m0` of the tiles. */
INLINE void split_panel(const Product *p, int64_t m0, int64_t m1, int64_t row, TileScratch s) {
    memset(s.e, 0, row_tiles(m1 - m0, s.parts) * STEPS * 1024);
    for (int64_t m = m0; m < m1; m++)
        for (int k = 0; k < 8 * PANEL && row + k < p->k; k++) {
            float x = p->e[m * p->e_row + (row + k) * p->e_column];
            int at = k % 32 < 16 ? k % 32 * 2 : k % 32 * 2 - 31;
            for (int64_t part = 0, line = m - m0; part < s.parts; part++, line += m1 - m0)
                s.e[((line / 16 * STEPS + k / 32) * 16 + line % 16) * 32 + at] = split(&x);
        }
}

/* Columns 8 c + j of a block as tiles of bfloat16 signs, c below 16 in the first tile of columns. */
INLINE void unpack_signs(const uint64_t *index, int j, int steps, uint32_t *signs) {
    for (int half = 0; half < 2; half++)
        for (int step = 0; step < steps; step++) {
            lanes word = {0}, bytes, *pairs = (lanes *)(signs + (half * STEPS + step) * 256);
            UNROLLED (int g = 0; g < 4; g++) {
                WIDEN(bytes, ((const bytes16 *)index)[(j * PANEL + 4 * step + g) * 2 + half]);
                word |= bytes << 8 * g;
            }
            _Pragma("GCC unroll 16")
            for (int t = 0; t < 16; t++) pairs[t] = (~(word << (15 - t)) & 0x80008000u) | 0x3f803f80u;
        }
}

/* 16 or, where `pair`, 32 rows of parts times 32 columns of signs, added to their sums unless these are the first. */
INLINE void multiply(const uint16_t *e, const uint32_t *signs, int steps, int pair, int first, float *sums,
                     int64_t next) {
    if (first) {
        TILE_ZERO(0); TILE_ZERO(1);
        if (pair) { TILE_ZERO(2); TILE_ZERO(3); }
    } else {
        TILE_LOAD(0, sums); TILE_LOAD(1, sums + 256);
        if (pair) { TILE_LOAD(2, sums + next); TILE_LOAD(3, sums + next + 256); }
    }
    for (int step = 0; step < steps; step++, e += 512, signs += 256) {
        TILE_LOAD(4, e);
        TILE_LOAD(6, signs);
        TILE_LOAD(7, signs + STEPS * 256);
        TILE_DOT(0, 4, 6); TILE_DOT(1, 4, 7);
        if (!pair) continue;
        TILE_LOAD(5, e + STEPS * 512);
        TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, sums); TILE_STORE(1, sums + 256);
    if (pair) { TILE_STORE(2, sums + next); TILE_STORE(3, sums + next + 256); }
}

/* A block of columns of a panel: its bits as tiles, 32 columns at a time, times all rows of parts. */
INLINE void multiply_block(const Product *p, int64_t row, int64_t n, int64_t rows, int64_t next, TileScratch s,
                           float *sums) {
    int groups = groups_from(p, row, PANEL), steps = (groups + 3) / 4;
    for (int g = 0; g < 4 * steps; g++) repack(p, row + 8 * g, g, PANEL, n, BLOCK, s.index);
    for (int j = 0; j < 8; j++, sums += 512) {
        unpack_signs(s.index, j, steps, s.signs);
        for (int64_t t = 0; t < row_tiles(rows, s.parts); t += 2) {
            int pair = t + 1 < row_tiles(rows, s.parts);
            multiply(s.e + t * STEPS * 512, s.signs, steps, pair, row == 0, sums + t * next, next);
        }
    }
}

/* The sums of a row's parts in columns n to n + 128 of a tile of columns, smallest part first. */
INLINE void add_parts(int64_t line, int64_t rows, int64_t n, int64_t next, TileScratch s, f16 sums[8]) {
    UNROLLED (int j = 0; j < 8; j++) sums[j] = (f16){0};
    for (int64_t part = s.parts - 1; part >= 0; part--) {
        int64_t at = line + part * rows;
        const float *tile = s.sums + at / 16 * next + n / BLOCK * BLOCK * 16 + n % BLOCK / 128 * 256 + at % 16 * 16;
        UNROLLED (int j = 0; j < 8; j++) sums[j] += *(const f16 *)(tile + 512 * j);
    }
}

INLINE void write_tiles(const Product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t next, TileScratch s) {
    for (int64_t m = m0; m < m1; m++)
        for (int64_t n = n0; n < n1; n += 128) {
            f16 sums[8];
            add_parts(m - m0, m1 - m0, n - n0, next, s, sums);
            float *out = p->out + m * p->n + n;
            int columns = n1 - n < 128 ? (int)(n1 - n) : 128;
            for (int c = 0; c < columns; c++) out[c] = ((const float *)sums)[c % 8 * 16 + c / 8];
        }
}

INLINE void multiply_tile(const Product *p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, TileScratch s) {
    int64_t columns = whole_blocks(n1 - n0), next = 16 * columns;
    for (int64_t row = 0; row < p->k; row += 8 * PANEL) {
        split_panel(p, m0, m1, row, s);
        for (int64_t c = 0; c < columns; c += BLOCK)
            multiply_block(p, row, n0 + c, m1 - m0, next, s, s.sums + 16 * c);
    }
    if (p->k == 0) memset(s.sums, 0, sizeof(float) * row_tiles(m1 - m0, s.parts) * next);
    write_tiles(p, m0, m1, n0, n1, next, s);
}

/* Columns n0 to n1; 1 where memory runs out. */
INLINE int multiply_tiles(const Product *p, int64_t n0, int64_t n1) {
    TileShapes shapes = {.palette = 1};
    for (int t = 0; t < 8; t++) { shapes.rows[t] = 16; shapes.bytes[t] = 64; }
    int parts = parts_of(p);
    int64_t tiles = row_tiles(p->m < PARTS_CHUNK ? p->m : PARTS_CHUNK, parts);
    size_t e = tiles * STEPS * 1024, signs = 2 * STEPS * 1024, index = BLOCK * PANEL;
    char *memory = aligned_alloc(64, e + signs + index + tiles * 64 * whole_blocks(n1 - n0));
    if (memory == NULL) return 1;
    TileScratch s = {(uint16_t *)memory, (uint32_t *)(memory + e), (uint64_t *)(memory + e + signs),
                     (float *)(memory + e + signs + index), parts};
    TILES_BEGIN(&shapes);
    for (int64_t m = 0; m < p->m; m += PARTS_CHUNK)
        multiply_tile(p, m, m + PARTS_CHUNK < p->m ? m + PARTS_CHUNK : p->m, n0, n1, s);
    TILES_END();
    free(memory);
    return 0;
}
#endif
