/* ReLU, local response normalization with beta = 3/4, and 3x3 max pooling of stride 2: what follows a convolution of
   VGG-M, in one pass over images whose channels lie side by side. Three normalised rows are all that is kept.
   No headers of torch and no global flags but -fno-math-errno, without which square roots are taken one by one. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
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

INLINE uint16_t narrowed(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0 : nearest);
}

/* x > 0 or NaN, as torch has it. */
INLINE float relu(float x) { return x < 0 ? 0 : x; }

/* NaN wins, as in torch. */
INLINE float larger(float a, float b) {
    const float most = b > a ? b : a;
    return b != b ? b : most;
}

/* One pixel's channels; `squares` has size / 2 zeros before and (size - 1) / 2 behind. */
INLINE void normalise(const float *x, float *y, float *squares, const Job *job, int64_t channels, int64_t size) {
    float *const own = squares + size / 2;
    for (int64_t c = 0; c < channels; c++) own[c] = x[c] * x[c];
    for (int64_t c = 0; c < channels; c++) {
        float sum = squares[c];
        for (int64_t t = 1; t < size; t++) sum += squares[c + t];
        const float d = job->k + job->factor * sum;
        y[c] = x[c] / __builtin_sqrtf(__builtin_sqrtf(d) * d);
    }
}

INLINE void normalised_row(const Job *job, int64_t image, int64_t row, float *to, float *pixel, float *squares,
                           int64_t size, int bf16) {
    const int64_t channels = job->channels, at = (image * job->height + row) * job->width * channels;
    for (int64_t column = 0; column < job->width; column++) {
        const int64_t offset = at + column * channels;
        if (bf16)
            for (int64_t c = 0; c < channels; c++) pixel[c] = relu(widened(((const uint16_t *)job->x)[offset + c]));
        else
            for (int64_t c = 0; c < channels; c++) pixel[c] = relu(((const float *)job->x)[offset + c]);
        normalise(pixel, to + column * channels, squares, job, channels, size);
    }
}

INLINE void pooled_row(const Job *job, int64_t at, float *const rows[ROWS], float *most, int64_t columns, int bf16) {
    const int64_t channels = job->channels;
    for (int64_t column = 0; column < columns; column++) {
        const int64_t left = column * STRIDE * channels;
        memcpy(most, rows[0] + left, channels * sizeof *most);
        for (int row = 0; row < ROWS; row++)
            for (int64_t by = row ? 0 : channels; by < ROWS * channels; by += channels)
                for (int64_t c = 0; c < channels; c++) most[c] = larger(most[c], rows[row][left + by + c]);
        const int64_t offset = at + column * channels;
        if (bf16)
            for (int64_t c = 0; c < channels; c++) ((uint16_t *)job->y)[offset + c] = narrowed(most[c]);
        else
            memcpy((float *)job->y + offset, most, channels * sizeof *most);
    }
}

static int64_t pooled(int64_t side) { return (side - ROWS) / STRIDE + 1; }

INLINE void image_of(const Job *job, int64_t image, float *scratch, int64_t size, int bf16) {
    const int64_t channels = job->channels, row_size = job->width * channels;
    const int64_t height = pooled(job->height), width = pooled(job->width);
    float *const pixel = scratch + ROWS * row_size, *const squares = pixel + channels, *rows[ROWS];
    memset(squares, 0, (channels + size) * sizeof *squares);
    int64_t done = 0;
    for (int64_t out = 0; out < height; out++) {
        for (; done < out * STRIDE + ROWS; done++)
            normalised_row(job, image, done, scratch + done % ROWS * row_size, pixel, squares, size, bf16);
        for (int row = 0; row < ROWS; row++) rows[row] = scratch + (out * STRIDE + row) % ROWS * row_size;
        pooled_row(job, (image * height + out) * width * channels, rows, pixel, width, bf16);
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
