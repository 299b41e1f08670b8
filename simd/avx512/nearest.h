/* Nearest centroids of points, both in bytes, for AVX512-VNNI. Products never leave the registers: they would be four bytes for
 * d multiplications, and a matrix product that writes them depends on how well it does that (oneDNN 2.6: 35 us for 256 points x
 * 341 centroids of d 128 with VNNI's instructions, 196 where it takes AMX's; with the search in them, 41 here). */
#ifndef DP_SIMD_AVX512_NEAREST_H
#define DP_SIMD_AVX512_NEAREST_H

#include "lanes.h"

#include "../query_bytes.h"

enum { POINTS = 8, PANELS = 3 }; /* 24 sums in registers */

/* Centroids, and points with what their products are too large by: each centroid's element has 128 more. */
typedef struct search {
    const int8_t *x;
    const float *scale;
    const uint8_t *panels;
    const float *step, *half_norm;
    size_t n_means, d;
    int32_t excess[POINTS];
    __m512i sum[POINTS][PANELS];
    lanes found[POINTS];
} search;

DP_INLINE int32_t excess_of(const int8_t *x, size_t d)
{
    __m512i sum = _mm512_setzero_si512();
    for (size_t j = 0; j < d; j += 64) {
        const __mmask64 mask = d - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (d - j)) - 1;
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), _mm512_maskz_loadu_epi8(mask, x + j));
    }
    return _mm512_reduce_add_epi32(sum);
}

/* The sums of the points' products with the clusters of `panels` (a constant) panels. */
DP_INLINE void multiply_tile(search *s, const uint8_t *panel, size_t panels)
{
    const size_t d = s->d;
    const int8_t *const x = s->x;
    dp_words sum[POINTS * PANELS];
    DP_UNROLL
    for (size_t k = 0; k < POINTS * panels; k++) sum[k] = (dp_words)_mm512_set1_epi32(-s->excess[k / panels]);
    size_t j = 0;
    do {
        __m512i centroids[PANELS];
        DP_UNROLL
        for (size_t c = 0; c < panels; c++) centroids[c] = _mm512_loadu_si512(panel + (c * d + j) * DP_PANEL);
        DP_UNROLL
        for (size_t k = 0; k < POINTS * panels; k++)
            sum[k] = (dp_words)_mm512_dpbusd_epi32((__m512i)sum[k], centroids[k % panels],
                                                _mm512_set1_epi32(four_bytes(x + k / panels * d + j)));
        j += 4;
    } while (j < d);
    DP_UNROLL
    for (size_t k = 0; k < POINTS * panels; k++) s->sum[k / panels][k % panels] = (__m512i)sum[k];
}

/* Each a function of its own: inlined into one they would compete for registers. */
static __attribute__((noinline)) void multiply_3(search *s, const uint8_t *panel) { multiply_tile(s, panel, 3); }
static __attribute__((noinline)) void multiply_2(search *s, const uint8_t *panel) { multiply_tile(s, panel, 2); }
static __attribute__((noinline)) void multiply_1(search *s, const uint8_t *panel) { multiply_tile(s, panel, 1); }

/* Compares the points with the clusters of the n panels from number p on. */
DP_INLINE void compare_panels(search *s, size_t p, size_t n)
{
    const uint8_t *const panel = s->panels + p * DP_PANEL * s->d;
    switch (n) {
    case 3: multiply_3(s, panel); break;
    case 2: multiply_2(s, panel); break;
    default: multiply_1(s, panel); break;
    }
    for (size_t c = 0; c < n; c++) {
        const size_t first = (p + c) * DP_PANEL;
        const __mmask16 mask = dp_mask16(s->n_means - first);
        const __m512 step = _mm512_maskz_loadu_ps(mask, s->step + first);
        const __m512 norm = _mm512_maskz_loadu_ps(mask, s->half_norm + first);
        DP_UNROLL
        for (size_t i = 0; i < POINTS; i++) {
            const __m512 product = _mm512_mul_ps(step, _mm512_cvtepi32_ps(s->sum[i][c]));
            s->found[i] = better_lanes(s->found[i], mask, _mm512_fmsub_ps(_mm512_set1_ps(s->scale[i]), product, norm), first);
        }
    }
}

DP_INLINE void compare(search *s)
{
    for (size_t i = 0; i < POINTS; i++) {
        s->excess[i] = excess_of(s->x + i * s->d, s->d);
        s->found[i] = start_lanes();
    }
    const size_t n_panels = (s->n_means + DP_PANEL - 1) / DP_PANEL;
    for (size_t p = 0; p < n_panels; p += PANELS) compare_panels(s, p, n_panels - p < PANELS ? n_panels - p : PANELS);
}

static void nearest_in_bytes(const int8_t *x, const float *scale, size_t n, const uint8_t *panels, const float *step,
                             const float *half_norm, size_t n_means, size_t d, uint32_t *nearest)
{
    search s = {.panels = panels, .step = step, .half_norm = half_norm, .n_means = n_means, .d = d};
    int8_t last[POINTS * DP_MAX_DIM];
    float last_scale[POINTS];
    for (size_t i = 0; i < n; i += POINTS) {
        const size_t points = n - i < POINTS ? n - i : POINTS;
        s.x = x + i * d;
        s.scale = scale + i;
        if (points < POINTS) { /* what is left, and anything */
            memset(last, 0, POINTS * d);
            memset(last_scale, 0, sizeof last_scale);
            s.x = memcpy(last, s.x, points * d);
            s.scale = memcpy(last_scale, s.scale, points * sizeof *scale);
        }
        compare(&s);
        float best;
        for (size_t j = 0; j < points; j++) nearest[i + j] = (uint32_t)best_lane(s.found[j], &best);
    }
}

#endif
