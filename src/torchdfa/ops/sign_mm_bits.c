/* out = e @ signs for signs kept as one bit each: the product, and its bits as bytes of 8 rows.

   sign_mm*.c are compiled as one text, in the order that cpu.py names. No headers of torch, no global flags: generic
   bodies, compiled for each instruction set by function-level target attributes. Nothing is shared between calls. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8") for
#define BLOCK 256 /* columns that are repacked at a time: 32 bytes of a row */
#define TILE 4096 /* columns whose sums are held at a time, at most */

typedef uint64_t words __attribute__((vector_size(32)));

typedef struct {
    const float *e;           /* (m, k), strides in elements */
    int64_t m, k, e_row, e_column;
    const uint8_t *bits;      /* (k, ceil(n / 8)), little-endian */
    int64_t n, bits_row;
    float *out;               /* (m, n), contiguous */
} Product;

/* Exchange the bits `mask` of b with those `by` places higher of a. */
#define EXCHANGE(a, b, by, mask) do { words t_ = ((a >> by) ^ b) & mask; b ^= t_; a ^= t_ << by; } while (0)

/* 8 rows of 32 bytes -> byte c of row j holds the 8 bits of column 8 c + j. */
INLINE void transpose_bits(words r[8]) {
    UNROLLED (int i = 0; i < 4; i++) EXCHANGE(r[i], r[i + 4], 4, 0x0f0f0f0f0f0f0f0fu);
    UNROLLED (int i = 0; i < 2; i++) EXCHANGE(r[i], r[i + 2], 2, 0x3333333333333333u);
    UNROLLED (int i = 4; i < 6; i++) EXCHANGE(r[i], r[i + 2], 2, 0x3333333333333333u);
    UNROLLED (int i = 0; i < 8; i += 2) EXCHANGE(r[i], r[i + 1], 1, 0x5555555555555555u);
}

/* Index bytes of 8 rows from `row` on, the group g of `groups`, for columns n0 to n0 + columns:
   index[block of columns][j][group][32 bytes]. Rows and bytes beyond the matrix are zeros. */
INLINE void repack(const Product *p, int64_t row, int g, int groups, int64_t n0, int64_t columns, uint64_t *index) {
    int64_t byte = n0 / 8, width = (p->n + 7) / 8 - byte, step = p->bits_row;
    const uint8_t *source = p->bits + row * step + byte;
    for (int64_t c = 0; c < columns; c += BLOCK, index += 32 * groups, source += 32, width -= 32) {
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
        UNROLLED (int j = 0; j < 8; j++) memcpy(index + (j * groups + g) * 4, &r[j], 32);
    }
}

INLINE int64_t whole_blocks(int64_t columns) { return (columns + BLOCK - 1) / BLOCK * BLOCK; }

/* Groups of 8 rows from `row` on, no more than `most`. */
INLINE int groups_from(const Product *p, int64_t row, int most) {
    int64_t left = (p->k - row + 7) / 8;
    return left < most ? (int)left : most;
}
