/* The paths, of which one is chosen at run time by what the processor has, and what ctypes calls.

   -DTORCHDFA_EMULATE compiles that of sign_mm_registers.c for any processor, to test it.
   -DTORCHDFA_PLAIN leaves it out, for assemblers that do not know its instructions. */
typedef int (*Part)(const Product *, int64_t, int64_t);
static int always(void) { return 1; }
static int part_portable(const Product *p, int64_t n0, int64_t n1) { return look_up(p, n0, n1, 8); }

#ifdef TORCHDFA_EMULATE
#define TARGET(features)
#else
#define TARGET(features) __attribute__((target(features)))
#endif

#ifdef __x86_64__
static int has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }
__attribute__((target("avx2"))) static int part_avx2(const Product *p, int64_t n0, int64_t n1) {
    return look_up(p, n0, n1, 8);
}
#endif

#if defined(REGISTERS) && !defined(TORCHDFA_PLAIN)
#define AVX512 "avx2,avx512f,avx512bw,avx512dq,avx512vl"
TARGET(AVX512) static int part_avx512(const Product *p, int64_t n0, int64_t n1) {
    return p->m <= 2 ? look_up_in_registers(p, n0, n1) : look_up(p, n0, n1, 16);
}
#ifdef TORCHDFA_EMULATE
#define has_avx512 always
#else
static int has_avx512(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#endif

/* Best first. */
static const struct { const char *name; int (*runs)(void); Part part; } PATHS[] = {
#if defined(REGISTERS) && !defined(TORCHDFA_PLAIN)
    {"avx512", has_avx512, part_avx512},
#endif
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
