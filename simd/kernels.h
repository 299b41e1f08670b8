/* The kernel table: every routine that has a vector form, one table per ISA.
 *
 * Contracts are stated once, here; scalar/, avx2/, avx512/ and neon/ implement them under the same file names.
 * All kernels: run on the calling thread, allocate nothing, read and write exactly the elements that the contract
 * names (no over-read, no over-write), accept pointers aligned to their element only unless stated otherwise, and are
 * deterministic: the result depends on the arguments alone, never on address alignment. Infinities and NaN follow
 * IEEE arithmetic: a NaN operand that a formula touches shows in its result. Counts of zero are valid.
 *
 * Terms: "row" is one token's key or value of one KV head; "heads" are the query rows that share a KV head. */
#ifndef DP_SIMD_KERNELS_H
#define DP_SIMD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "doublep/types.h"

enum {
    DP_PANEL = 16,    /* clusters in a centroid panel, on every ISA: the layout in memory does not depend on the ISA */
    DP_CODE_GROUP = 4, /* tokens whose keys in few bits lie together */
    DP_SIGN_GROUP = 16, /* tokens whose keys' signs lie together */
    DP_SIGN_MOST = 31,  /* largest entry of signs_exceed's tables: eight of them fit a byte */
    DP_MAX_DIM = 512, /* largest d of key_logits, weighted_values, code_logits and signs_exceed */
    DP_WORST_ERROR = 100000, /* see cluster_mass */
    DP_LIST_SLACK = 16, /* see list_flagged */
};

/* dst[i] = src[i] in another type. To f16 and bf16: round to nearest even, overflow to Inf, NaN stays NaN (quiet),
 * denormals are kept in both directions. int8: one row of n elements, with its step behind (DP_INT8 in doublep/types.h), rounded to
 * the nearest, ties to even; its step is NaN where an element is not finite, so that all of it is, and 0 where 127 / largest
 * magnitude is not finite. */
typedef void (*dp_to_f32_fn)(float *dst, const void *src, size_t n);
typedef void (*dp_from_f32_fn)(void *dst, const float *src, size_t n);

/* out[h * out_stride + p * 16 + c] = step(p, c) * sum_j q[h * d + j] * centroid(p, c, j), h < heads, p < n_panels, c < 16.
 * q: f32 [heads][d], d a multiple of 4. A panel is dp_panel_bytes(d) long: int8 centroids, four dimensions of a cluster
 * adjacent, element (c, j) at byte (j / 4) * 64 + c * 4 + j % 4, so that lanes are clusters and no horizontal sum is
 * needed; then f32 step[16]. panels is 64-byte aligned (as every panel then is). Tables with
 * products of bytes (AVX512-VNNI, NEON's dot products) round a head's q to 2^-16 of its largest element. */
typedef void (*dp_score_panels_fn)(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels,
                                   float *out, size_t out_stride);
static inline size_t dp_panel_bytes(size_t d)
{
    return DP_PANEL * (d + sizeof(float));
}

/* Where a row is, as lists hold it: the complement of its address. Processors that fetch what pointers in memory point to
 * would follow a list far ahead of the kernel, and memory has no time to spare: dense attention, 128K tokens of d 128, one
 * thread, lists of 64 rows, takes 42.1 ms; with addresses in them 48.4. */
typedef struct dp_row {
    uintptr_t complement;
} dp_row;

static inline dp_row dp_row_at(const void *address)
{
    return (dp_row){~(uintptr_t)address};
}

static inline const void *dp_row_address(dp_row row)
{
    return (const void *)~row.complement;
}

/* acc[h * d + j] += sum_i w[h * w_stride + i] * row(i)[j], h < heads, i < n, j < d: weighted_values for mean values, int8 at
 * rows[i]; the caller has multiplied each weight by the row's step. ahead as in key_logits; d: a multiple of 8. */
typedef void (*dp_weighted_means_fn)(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                                     size_t ahead, size_t d, float *acc);

/* out[h * out_stride + i] = scale * sum_j q[h * d + j] * row(i)[j], h < heads, i < n.
 * row(i): d elements of the table slot's type, at rows[i]; int8 with its step. d: a multiple of 8, at most DP_MAX_DIM.
 * rows[n] .. rows[n + ahead - 1] are rows that the caller wants next. Each row is fetched into the cache while one some way
 * before it is at work, and so are the first of these, up to n. They are not read otherwise. */
typedef void (*dp_key_logits_fn)(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n,
                                 size_t ahead, float scale, float *out, size_t out_stride);

/* acc[h * d + j] += sum_i w[h * w_stride + i] * row(i)[j], h < heads, j < d; rows, ahead and d as in key_logits. */
typedef void (*dp_weighted_values_fn)(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                                      size_t ahead, size_t d, float *acc);

/* Keys in few bits, less their cluster's centroid and in units of step(i), a number in a byte: that whose bits are
 * step_base + (step[i] << 19), four bits of exponent and four of mantissa. Four tokens lie together, a group, so that lanes
 * are tokens and dimensions, four and four, and few are summed across: of a group first dimensions 0 to 3 of its tokens, one
 * after the other, then dimensions 4 to 7, ... In four bits (2 d bytes a group) byte b has number b of the first d / 2 dimensions
 * in its low half and number b of the others in its high half. Tokens skip .. skip + n - 1, skip < 4, are asked for: of their groups every byte is read, of step the numbers
 * from step[skip] on. */
typedef struct dp_code_tokens {
    const uint8_t *codes; /* of the first group */
    const uint8_t *step;  /* likewise */
    uint32_t step_base;   /* bits of a power of two from 2^-126 to 2^111 */
    size_t skip, n;
    const void *ahead;  /* what the caller wants next: up to as many bytes as are read are fetched into the cache */
    size_t ahead_lines; /* meanwhile, in lines of 64; they are not read otherwise */
} dp_code_tokens;

/* q: [heads][d / 4][4][4] int8, none -128: every four dimensions once for each token; sum_of_q[h]: over its d dimensions. d: a
 * multiple of 8, at most DP_MAX_DIM. Sums are exact integers and the rest is in the order of the formulas: the same bits on
 * every ISA, but for the sign of a zero. */
typedef struct dp_code_queries {
    size_t heads, d;
    const int8_t *q;
    const int32_t *sum_of_q; /* [heads] */
    const float *factor;     /* [heads] */
} dp_code_queries;

/* out[h * out_stride + i] = (factor[h] * step(skip + i)) * (float)sum_j q(h, j) * (2 code(skip + i, j) - 15), i < n. */
typedef void (*dp_code_logits_fn)(const dp_code_queries *q, const dp_code_tokens *tokens, float *out, size_t out_stride);

/* Signs of keys less their cluster's centroid, in one bit: 16 tokens lie together, a group, first dimensions 0 to 7 of them, a
 * byte a token, bit j set where dimension j is positive, then dimensions 8 to 15, ... (2 d bytes). Four bits are the number of
 * one of 16 sums of four elements of a query, which is looked up, for 16 tokens and more by one instruction. n tokens from
 * the first of a group on are asked for: of their groups every byte is read, of step the first n. */
typedef struct dp_sign_tokens {
    const uint8_t *signs;
    const uint8_t *step; /* with step_base as in dp_code_tokens */
    uint32_t step_base;
    size_t n;
    const void *ahead; /* likewise */
    size_t ahead_lines;
} dp_sign_tokens;

/* table: [heads][2][d / 8][16] entries from 0 to DP_SIGN_MOST: for the low and the high half of byte b of a token. d: a multiple
 * of 8, at most DP_MAX_DIM. */
typedef struct dp_sign_queries {
    size_t heads, d;
    const uint8_t *table;
    const float *centre, *factor, *limit; /* [heads] */
} dp_sign_queries;

/* marks[i] = 1 where !((factor[h] * step(i)) * ((float)sum - centre[h]) <= limit[h]) for any h < heads, else 0, i < n; sum: over
 * b < d / 8 of table[h][0][b][byte(i, b) % 16] + table[h][1][b][byte(i, b) / 16]. Returns whether any is 1. Exact as
 * code_logits is: the same on every ISA. */
typedef int (*dp_signs_exceed_fn)(const dp_sign_queries *q, const dp_sign_tokens *tokens, uint8_t *marks);

/* Where dimension j of a group's token t is: a number b as above. */
static inline size_t dp_code_place(size_t j, size_t t)
{
    return j / 4 * 16 + t * 4 + j % 4;
}

static inline float dp_code_step(uint32_t base, uint8_t step)
{
    const union {
        uint32_t bits;
        float value;
    } x = {base + ((uint32_t)step << 19)};
    return x.value;
}

/* Largest x[i]; NaN are passed over; -Inf when n = 0 or nothing but NaN. */
typedef float (*dp_max_fn)(const float *x, size_t n);

/* x[i] = exp(x[i] - m), m = max, or 0 where max = -Inf (so that a fully masked row gives zeros, not NaN);
 * returns the sum. Arguments below -87 may give 0; relative error of exp at most 4 ulp. NaN stays NaN. */
typedef float (*dp_exp_sum_fn)(float *x, size_t n, float max);

/* x[h * x_stride + i] becomes y = exp(x - max[h]), as in exp_sum, h < heads, i < n; wanted[i] = 1 where !(y <= limit[h]) for
 * any h, else 0; left[h] += the sum of y over i with wanted[i] = 0. */
typedef void (*dp_split_masses_fn)(float *x, size_t x_stride, size_t heads, size_t n, const float *max,
                                   const float *limit, uint8_t *wanted, float *left);

/* x[i] = cap * tanh((x[i] + add) / cap), cap > 0 and finite: +-Inf becomes +-cap. Relative error at most 8 2^-24, near 0 as well
 * as where it saturates, whatever the cap: of a logit of ordinary size no more than its own rounding. (What is denormal on the
 * way adds at most cap 2^-148 + 2^-149.) */
typedef void (*dp_soft_cap_fn)(float *x, size_t n, float add, float cap);

/* Stage 1, first half: size, spread and limit are bf16 (a third of the bytes of the scan would be theirs as f32). For
 * clusters with size[i] > 0, with the standard deviation of the logits in the cluster
 * sigma = sqrt(variance * spread[i]) and limit[i] = sqrt(2 log size[i]),
 *   out[i] = base + scale * x[i] + m (sigma - m / 2),  m = min(sigma, limit[i]);
 * -Inf for the padding (size 0). out may be x. Returns the largest (NaN passed over). The last term is the logarithm of the mean of
 * exp(deviation from the mean logit): sigma^2 / 2 for normally distributed deviations, as long as a sample of size[i]
 * has any so large; beyond that the largest of the sample decides, which is about limit * sigma, and the mass grows no
 * faster (the random energy model's freezing: B. Derrida, Phys. Rev. B 24, 2613, 1981). variance, spread >= 0. */
typedef float (*dp_cluster_logits_fn)(const float *x, const uint16_t *size, const uint16_t *spread,
                                      const uint16_t *limit, size_t n, float base, float scale, float variance,
                                      float *out);

/* Stage 1, second half, per cluster i with y = exp(x[i] - max) (max finite or -Inf, as in exp_sum):
 *   mass[i]  = size[i] * y                                          estimated mass, in units of exp(max)
 *   error[i] = mass[i]^2 * min(expm1(2 * variance * spread[i]), DP_WORST_ERROR * size[i])  expected squared error of leaving
 *              the cluster approximated: the relative variance of a lognormal weight, as far as it is to be believed. The
 *              variance counts twice because queries are no random directions: they point at what they look for
 * size[i] = 0 gives zeros; error may be 0 where y is below 2^-60. Returns the sum of mass. mass may be x. Relative error
 * of expm1 at most 1e-5 (absolute 1e-7 for small arguments will do). variance, spread >= 0, size <= 1e9. */
typedef float (*dp_cluster_mass_fn)(const float *x, const uint16_t *size, const uint16_t *spread, size_t n, float max,
                                    float variance, float *mass, float *error);

/* joint[i] += weight * error[i]; flags[i] |= 1 where !(mass[i] < keep). */
typedef void (*dp_keep_clusters_fn)(const float *mass, const float *error, size_t n, float keep, float weight,
                                    float *joint, uint8_t *flags);

/* Errors by cost: rank[i] = joint[i] / cost, where a cluster of a single token costs 1, one of more read + look * size[i];
 * joint[i] = min(joint[i], most), most where it is NaN. Within 2 ulp. size[i] <= 256 is exact in bf16. */
typedef void (*dp_rank_clusters_fn)(float *joint, const uint16_t *size, size_t n, float read, float look, float most,
                                    float *rank);

/* flags[i] |= size[i] > 1 ? several : one, where rank[i] >= threshold and rank[i] > 0. */
typedef void (*dp_mark_ranked_fn)(const float *rank, const uint16_t *size, size_t n, float threshold, uint8_t one,
                                  uint8_t several, uint8_t *flags);

/* flags[i] |= bit where a token may be in reach: unless limit - scale * score[i], how far a logit is above the centroid's, is
 * positive and its square larger than variance * spread[i], and mass[i] <= heavy. NaN are in reach. variance, spread >= 0. */
typedef void (*dp_mark_in_reach_fn)(const float *score, const float *mass, const uint16_t *spread, size_t n, float scale,
                                    float limit, float variance, float heavy, uint8_t bit, uint8_t *flags);

/* out: in order, the i < n with (flags[i] & mask) == value; n <= 65536. Returns how many; there must be room for
 * DP_LIST_SLACK more, which may be written. */
typedef size_t (*dp_list_flagged_fn)(const uint8_t *flags, size_t n, uint8_t mask, uint8_t value, uint16_t *out);

/* weight[i] = mass[index[i]] * unit[i], i < n; sums[0] += the sum of mass[index[i]], sums[1] += that of
 * mass[index[i]] * part[i]. */
typedef void (*dp_mean_weights_fn)(const float *mass, const uint16_t *index, size_t n, const float *unit,
                                   const float *part, float *weight, float sums[2]);

/* Sum of value[i] over all i with !(rank[i] < threshold): a NaN rank counts. */
typedef float (*dp_sum_at_least_fn)(const float *rank, const float *value, size_t n, float threshold);

/* Those i < n that sum_at_least counts: out_rank[] = rank[i], out_value[] = value[i], in order; returns how many. The arrays of n
 * may be the same, and what is beyond the count may be overwritten. value, then out_value too, may be NULL. */
typedef size_t (*dp_list_at_least_fn)(const float *rank, const float *value, size_t n, float threshold, float *out_rank,
                                      float *out_value);

/* Index of the largest dot[i] - half_norm[i]; the lowest such index; NaN differences lose; 0 when all are NaN or -Inf.
 * Nearest centroid by squared distance: half_norm = |c|^2 / 2. *best receives the largest difference (-Inf if none). */
typedef size_t (*dp_nearest_fn)(const float *dot, const float *half_norm, size_t n, float *best);

/* nearest[i], i < n: likewise the index of the largest scale[i] * (step[c] * sum_j x(i, j) * centroid(c, j)) - half_norm[c],
 * c < n_means. x: int8 [n][d], d a multiple of 8, at most DP_MAX_DIM. Centroids, int8, are in panels: as those of score_panels,
 * but without steps (16 d bytes each), and 128 more, so that they have no sign; whole panels are read. NULL but with
 * AVX512-VNNI and NEON's dot products: elsewhere products of bytes are no faster than those of f32. */
typedef void (*dp_nearest_in_bytes_fn)(const int8_t *x, const float *scale, size_t n, const uint8_t *panels, const float *step,
                                       const float *half_norm, size_t n_means, size_t d, uint32_t *nearest);

/* y[i] += a * x[i]. */
typedef void (*dp_axpy_fn)(float *y, const float *x, float a, size_t n);

/* x[i] *= a. */
typedef void (*dp_scale_fn)(float *x, float a, size_t n);

/* sum_i a[i] * b[i]. */
typedef float (*dp_dot_fn)(const float *a, const float *b, size_t n);

/* dst[j * dst_stride + i] = src[i * src_stride + j], i < rows, j < cols. */
typedef void (*dp_transpose_fn)(float *dst, size_t dst_stride, const float *src, size_t src_stride, size_t rows,
                                size_t cols);

/* C[i][j] = sum_l A[i][l] * B[l][j]  (+ C[i][j] when accumulate is not 0; otherwise C is not read), row-major with
 * leading dimensions lda, ldb, ldc, all sizes arbitrary. The blocks of prefill attention: everything is in L2 already,
 * so nothing is packed. n and k are typically 64 to 512, m 64 to 512. */
typedef void (*dp_matmul_fn)(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m,
                             size_t n, size_t k, int accumulate);

typedef struct dp_kernels {
    dp_to_f32_fn to_f32[DP_TYPE_COUNT];
    dp_from_f32_fn from_f32[DP_TYPE_COUNT];
    dp_score_panels_fn score_panels;
    dp_weighted_means_fn weighted_means;
    dp_code_logits_fn code_logits;
    dp_signs_exceed_fn signs_exceed;
    dp_key_logits_fn key_logits[DP_TYPE_COUNT];
    dp_weighted_values_fn weighted_values[DP_TYPE_COUNT];
    dp_max_fn max;
    dp_exp_sum_fn exp_sum;
    dp_split_masses_fn split_masses;
    dp_soft_cap_fn soft_cap;
    dp_cluster_logits_fn cluster_logits;
    dp_cluster_mass_fn cluster_mass;
    dp_keep_clusters_fn keep_clusters;
    dp_rank_clusters_fn rank_clusters;
    dp_mark_ranked_fn mark_ranked;
    dp_mark_in_reach_fn mark_in_reach;
    dp_list_flagged_fn list_flagged;
    dp_mean_weights_fn mean_weights;
    dp_sum_at_least_fn sum_at_least;
    dp_list_at_least_fn list_at_least;
    dp_nearest_fn nearest;
    dp_nearest_in_bytes_fn nearest_in_bytes;
    dp_axpy_fn axpy;
    dp_scale_fn scale;
    dp_dot_fn dot;
    dp_transpose_fn transpose;
    dp_matmul_fn matmul;
} dp_kernels;

/* CPU features as found by dp_cpu_features(): bits. */
enum {
    DP_CPU_AVX2 = 1u << 0,         /* AVX2, FMA, F16C and the OS saves YMM */
    DP_CPU_AVX512 = 1u << 1,       /* AVX-512 F, BW, DQ, VL and the OS saves ZMM */
    DP_CPU_AVX512_BF16 = 1u << 2,  /* additionally AVX512_BF16 */
    DP_CPU_NEON = 1u << 3,         /* Advanced SIMD */
    DP_CPU_NEON_BF16 = 1u << 4,    /* additionally FEAT_BF16 */
    DP_CPU_NEON_DOTPROD = 1u << 5, /* additionally FEAT_DotProd */
    DP_CPU_AVX512_VNNI = 1u << 6,  /* additionally AVX512_VNNI */
};

unsigned dp_cpu_features(void);

/* Fills the table for an ISA (not DP_ISA_AUTO): the scalar form first, then the ISA's own over it, with the optional
 * instructions that `features` shows. Returns 0, or -1 where this build or `features` lacks the ISA. */
int dp_kernels_init(dp_kernels *k, dp_isa isa, unsigned features);

/* Each overwrites the entries it has a better form for; compiled with that ISA's flags, called only where it runs. */
void dp_kernels_init_scalar(dp_kernels *k);
void dp_kernels_init_avx2(dp_kernels *k);
void dp_kernels_init_avx512(dp_kernels *k);
void dp_kernels_init_avx512_bf16(dp_kernels *k);
void dp_kernels_init_avx512_vnni(dp_kernels *k);
void dp_kernels_init_neon(dp_kernels *k);
void dp_kernels_init_neon_bf16(dp_kernels *k);
void dp_kernels_init_neon_dotprod(dp_kernels *k);

#endif
