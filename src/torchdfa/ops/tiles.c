/* y = M x M^T for many small tiles x: the transforms of Winograd's convolutions, several channels at a time.

   The matrices M are those of F(4x4, 3x3) in Lavin & Gray (2016), written out, as most of their entries are 0 or 1.
   No headers of torch and no global flags: instruction sets belong to single functions. */
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8") for
#define LANES 8 /* channels taken at once; their number is a multiple */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Tap (i, j) of tile (n, row, column): channels that lie side by side in memory, the first of them at
   data[n * tile[0] + row * tile[1] + column * tile[2] + i * tap[0] + j * tap[1]].
   It is there if first <= row * step + i < end, and so along columns; if not, it reads as 0 and is not written. */
typedef struct {
    float *data;
    int64_t tile[3], tap[2], step, first[2], end[2];
} Side;

typedef struct {
    Side from, to;
    int64_t sizes[3], channels; /* tiles n, rows, columns */
} Job;

/* B^T (6, 6): images to tiles. */
INLINE void from_image(const lanes *x, lanes *y) {
    const lanes a = x[4] - 4 * x[2], b = x[3] - 4 * x[1], c = x[4] - x[2], d = 2 * (x[3] - x[1]);
    y[0] = 4 * x[0] - 5 * x[2] + x[4], y[5] = 4 * x[1] - 5 * x[3] + x[5];
    y[1] = a + b, y[2] = a - b, y[3] = c + d, y[4] = c - d;
}

/* A^T (4, 6): products of tiles to images. */
INLINE void to_image(const lanes *x, lanes *y) {
    const lanes a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
    y[0] = x[0] + a + c, y[1] = b + 2 * d, y[2] = a + 4 * c, y[3] = b + 8 * d + x[5];
}

/* A (6, 4), the adjoint of A^T. */
INLINE void from_gradient(const lanes *x, lanes *y) {
    const lanes a = x[0] + x[2], b = x[1] + x[3], c = x[0] + 4 * x[2], d = 2 * x[1] + 8 * x[3];
    y[0] = x[0], y[5] = x[3];
    y[1] = a + b, y[2] = a - b, y[3] = c + d, y[4] = c - d;
}

/* G (6, 3): kernels to tiles. */
INLINE void from_kernel(const lanes *x, lanes *y) {
    const lanes a = (x[0] + x[2]) * (-1.0f / 6), b = x[1] * (1.0f / 6);
    const lanes c = x[0] * (1.0f / 24) + x[2] * (1.0f / 6), d = x[1] * (1.0f / 12);
    y[0] = x[0] * 0.25f, y[5] = x[2];
    y[1] = a - b, y[2] = a + b, y[3] = c + d, y[4] = c - d;
}

/* G^T (3, 6), the adjoint of G. */
INLINE void to_kernel(const lanes *x, lanes *y) {
    const lanes a = (x[1] + x[2]) * (-1.0f / 6), b = x[3] + x[4];
    y[0] = x[0] * 0.25f + a + b * (1.0f / 24);
    y[1] = (x[2] - x[1]) * (1.0f / 6) + (x[3] - x[4]) * (1.0f / 12);
    y[2] = a + b * (1.0f / 6) + x[5];
}

INLINE int absent(const Side *s, int axis, int64_t tap) { return tap < s->first[axis] || tap >= s->end[axis]; }

INLINE float *tile_of(const Side *s, int64_t n, int64_t row, int64_t column, int64_t channel) {
    return s->data + n * s->tile[0] + row * s->tile[1] + column * s->tile[2] + channel;
}

/* One tile of `taps` by `taps` to one of `results` by `results`: along its columns, then along its rows. */
INLINE void transform(const Job *job, int64_t n, int64_t row, int64_t column, int64_t channel, int taps, int results,
                      void (*along)(const lanes *, lanes *)) {
    const Side *from = &job->from, *to = &job->to;
    const float *in = tile_of(from, n, row, column, channel);
    float *out = tile_of(to, n, row, column, channel);
    lanes x[6], y[6], half[6][6];
    UNROLLED (int j = 0; j < taps; j++) {
        const int none = absent(from, 1, column * from->step + j);
        UNROLLED (int i = 0; i < taps; i++)
            x[i] = none || absent(from, 0, row * from->step + i)
                ? (lanes){0} : *(const lanes *)(in + i * from->tap[0] + j * from->tap[1]);
        along(x, y);
        UNROLLED (int i = 0; i < results; i++) half[i][j] = y[i];
    }
    UNROLLED (int i = 0; i < results; i++) {
        if (absent(to, 0, row * to->step + i)) continue;
        along(half[i], y);
        UNROLLED (int j = 0; j < results; j++)
            if (!absent(to, 1, column * to->step + j)) *(lanes *)(out + i * to->tap[0] + j * to->tap[1]) = y[j];
    }
}

INLINE void row_of_tiles(const Job *job, int which, int64_t n, int64_t row) {
    for (int64_t column = 0; column < job->sizes[2]; column++)
        for (int64_t channel = 0; channel < job->channels; channel += LANES) switch (which) {
            case 0: transform(job, n, row, column, channel, 6, 6, from_image); break;
            case 1: transform(job, n, row, column, channel, 6, 4, to_image); break;
            case 2: transform(job, n, row, column, channel, 4, 6, from_gradient); break;
            case 3: transform(job, n, row, column, channel, 3, 6, from_kernel); break;
            case 4: transform(job, n, row, column, channel, 6, 3, to_kernel); break;
        }
}

static void row_portable(const Job *job, int which, int64_t n, int64_t row) { row_of_tiles(job, which, n, row); }
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void row_avx2(const Job *job, int which, int64_t n, int64_t row) {
    row_of_tiles(job, which, n, row);
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
#define row_avx2 row_portable
static int has_avx2(void) { return 0; }
#endif

/* What the processor here runs. */
const char *torchdfa_tiles_path(void) { return has_avx2() ? "avx2" : "portable"; }

/* Whether it was built to share its work between threads. */
int torchdfa_tiles_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

void torchdfa_tiles(const Job *job, int which, int threads) {
    void (*const of_row)(const Job *, int, int64_t, int64_t) = has_avx2() ? row_avx2 : row_portable;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < job->sizes[0] * job->sizes[1]; i++) of_row(job, which, i / job->sizes[1], i % job->sizes[1]);
}
