/* AVX-512 search for the largest of many numbers, 16 at a time: what nearest and nearest_in_bytes share. */
#ifndef DP_SIMD_AVX512_LANES_H
#define DP_SIMD_AVX512_LANES_H

#include "avx512.h"

/* The largest so far of each lane, and where it is. */
typedef struct lanes {
    __m512 largest;
    __m512i winner;
} lanes;

DP_INLINE lanes start_lanes(void)
{
    return (lanes){_mm512_set1_ps(-INFINITY), _mm512_setzero_si512()};
}

DP_INLINE lanes better_lanes(lanes l, __mmask16 mask, __m512 x, size_t i)
{
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 better = _mm512_mask_cmp_ps_mask(mask, x, l.largest, _CMP_GT_OQ);
    return (lanes){_mm512_mask_mov_ps(l.largest, better, x),
                   _mm512_mask_add_epi32(l.winner, better, first, _mm512_set1_epi32((int)i))};
}

DP_INLINE size_t best_lane(lanes l, float *best)
{
    *best = _mm512_reduce_max_ps(l.largest);
    if (*best == -INFINITY) return 0;
    const __mmask16 ties = _mm512_cmp_ps_mask(l.largest, _mm512_set1_ps(*best), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epu32(ties, l.winner);
}

#endif
