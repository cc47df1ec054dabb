/* ReLU, local response normalization with beta = 3/4, and 3x3 max pooling of stride 2: what follows a convolution of
   VGG-M, in one pass over images whose channels lie side by side. Three normalised rows are all that is kept.
   No headers of torch and no global flags but -fno-math-errno, without which square roots are taken one by one. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8") for
#define ROWS 3   /* of a pooling window */
#define STRIDE 2 /* between windows */

typedef struct {
    const void *x;
    void *y;
    int64_t images, height, width, channels; /* of x */
    int64_t size;                            /* channels of a window of the norm */
    float k, factor;                         /* d = k + factor * sum of x^2 */
    int bf16;                                /* the numbers of x and y; all arithmetic is in float */
    float *scratch;                          /* torchdfa_norm_pool_scratch floats for each thread */
} Job;

INLINE float widened(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* The bits of a number that is not below 0, or of NaN, to the nearest; ties to even. */
INLINE uint16_t narrowed(uint32_t bits) {
    return (uint16_t)(bits > 0x7f800000 ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Never -0, and NaN stays, as in torch. */
INLINE float relu(float x) { return x <= 0 ? 0 : x; }

/* Of the bits of numbers that are not below 0: their order is that of the numbers, and NaN wins, as in torch. */
INLINE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* One pixel's channels; `squares` has size / 2 zeros before and (size - 1) / 2 behind. */
INLINE void normalise(const float *restrict x, float *restrict y, float *restrict squares, const Job *job,
                      int64_t channels, int64_t size) {
    const float k = job->k, factor = job->factor;
    float *const own = squares + size / 2;
    for (int64_t c = 0; c < channels; c++) own[c] = x[c] * x[c];
    for (int64_t c = 0; c < channels; c++) {
        float sum = squares[c];
        for (int64_t t = 1; t < size; t++) sum += squares[c + t];
        const float d = k + factor * sum;
        y[c] = x[c] / __builtin_sqrtf(__builtin_sqrtf(d) * d);
    }
}

INLINE void relu_of(const void *x, int64_t at, float *restrict y, int64_t channels, int bf16) {
    const uint16_t *restrict narrow = (const uint16_t *)x + at;
    const float *restrict full = (const float *)x + at;
    for (int64_t c = 0; c < channels; c++) y[c] = relu(bf16 ? widened(narrow[c]) : full[c]);
}

INLINE void normalised_row(const Job *job, int64_t image, int64_t row, float *to, float *pixel, float *squares,
                           int64_t size, int bf16) {
    const int64_t channels = job->channels, at = (image * job->height + row) * job->width * channels;
    for (int64_t column = 0; column < job->width; column++) {
        relu_of(job->x, at + column * channels, pixel, channels, bf16);
        normalise(pixel, to + column * channels, squares, job, channels, size);
    }
}

/* `rows` holds the bits of ROWS rows, `most` those of a pixel. */
INLINE void pooled_row(const Job *job, int64_t at, uint32_t *const rows[ROWS], uint32_t *most, int64_t columns,
                       int bf16) {
    const int64_t channels = job->channels;
    for (int64_t column = 0; column < columns; column++) {
        uint32_t *const to = bf16 ? most : (uint32_t *)job->y + at + column * channels;
        for (int64_t c = 0; c < channels; c++) {
            uint32_t found = 0;
            UNROLLED (int row = 0; row < ROWS; row++)
                UNROLLED (int by = 0; by < ROWS; by++)
                    found = larger(found, rows[row][(column * STRIDE + by) * channels + c]);
            to[c] = found;
        }
        uint16_t *restrict const narrow = (uint16_t *)job->y + at + column * channels;
        if (bf16)
            for (int64_t c = 0; c < channels; c++) narrow[c] = narrowed(most[c]);
    }
}

static int64_t pooled(int64_t side) { return (side - ROWS) / STRIDE + 1; }

INLINE void image_of(const Job *job, int64_t image, float *scratch, int64_t size, int bf16) {
    const int64_t channels = job->channels, row_size = job->width * channels;
    const int64_t height = pooled(job->height), width = pooled(job->width);
    float *const pixel = scratch + ROWS * row_size, *const squares = pixel + channels;
    uint32_t *rows[ROWS];
    memset(squares, 0, (channels + size) * sizeof *squares);
    int64_t done = 0;
    for (int64_t out = 0; out < height; out++) {
        for (; done < out * STRIDE + ROWS; done++)
            normalised_row(job, image, done, scratch + done % ROWS * row_size, pixel, squares, size, bf16);
        for (int row = 0; row < ROWS; row++) rows[row] = (uint32_t *)scratch + (out * STRIDE + row) % ROWS * row_size;
        pooled_row(job, (image * height + out) * width * channels, rows, (uint32_t *)pixel, width, bf16);
    }
}

/* The sizes of VGG-M and PyMDNet as constants, so that their sums are written out. */
INLINE void image_by_size(const Job *job, int64_t image, float *scratch) {
    const int bf16 = job->bf16;
    switch (job->size) {
        case 2: bf16 ? image_of(job, image, scratch, 2, 1) : image_of(job, image, scratch, 2, 0); break;
        case 5: bf16 ? image_of(job, image, scratch, 5, 1) : image_of(job, image, scratch, 5, 0); break;
        default: bf16 ? image_of(job, image, scratch, job->size, 1) : image_of(job, image, scratch, job->size, 0);
    }
}

static void image_portable(const Job *job, int64_t image, float *scratch) { image_by_size(job, image, scratch); }
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void image_avx2(const Job *job, int64_t image, float *scratch) {
    image_by_size(job, image, scratch);
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
#define image_avx2 image_portable
static int has_avx2(void) { return 0; }
#endif

/* Whether it was built to share its work between threads. */
int torchdfa_norm_pool_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int64_t torchdfa_norm_pool_scratch(const Job *job) {
    return (ROWS * job->width + 2) * job->channels + job->size;
}

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
#define omp_get_thread_num() 0
#endif

void torchdfa_norm_pool(const Job *job, int threads) {
    void (*const of_image)(const Job *, int64_t, float *) = has_avx2() ? image_avx2 : image_portable;
    const int64_t each = torchdfa_norm_pool_scratch(job);
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t image = 0; image < job->images; image++)
        of_image(job, image, job->scratch + omp_get_thread_num() * each);
}
