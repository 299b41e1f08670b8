/* Which clusters are worth looking at: passes over a segment's clusters, as loops that compilers vectorise (no branches; & for
 * &&), for the instruction set of the file that includes them. */
#ifndef DP_SIMD_RANK_H
#define DP_SIMD_RANK_H

#include <stddef.h>

#include "half.h"
#include "kernels.h"

enum { ONE_TOKEN = 0x3f80 /* 1 in bf16 */ };

static void rank_clusters(float *restrict joint, const uint16_t *restrict size, size_t n, float read, float look,
                          float most, float *restrict rank)
{
    for (size_t i = 0; i < n; i++) {
        const float several = (float)(size[i] > ONE_TOKEN); /* a factor: a condition on the divisor would not be vectorised */
        rank[i] = joint[i] / (1.0f - several + several * (read + look * dp_f32_from_bf16(size[i])));
        joint[i] = joint[i] <= most ? joint[i] : most;
    }
}

static void mark_ranked(const float *restrict rank, const uint16_t *restrict size, size_t n, float threshold,
                        uint8_t one, uint8_t several, uint8_t *restrict flags)
{
    for (size_t i = 0; i < n; i++) {
        const uint8_t bits = size[i] > ONE_TOKEN ? several : one;
        const int wanted = (rank[i] >= threshold) & (rank[i] > 0);
        flags[i] |= wanted ? bits : 0;
    }
}

static void mark_in_reach(const float *restrict score, const float *restrict mass, const uint16_t *restrict spread,
                          size_t n, float scale, float limit, float variance, float heavy, uint8_t bit,
                          uint8_t *restrict flags)
{
    for (size_t i = 0; i < n; i++) {
        const float above = limit - scale * score[i];
        const int far = (above > 0) & (above * above > variance * dp_f32_from_bf16(spread[i])) & (mass[i] <= heavy);
        flags[i] |= far ? 0 : bit;
    }
}

/* Call it from the initialiser of an instruction set's kernels. */
static inline void dp_init_rank(dp_kernels *k)
{
    k->rank_clusters = rank_clusters;
    k->mark_ranked = mark_ranked;
    k->mark_in_reach = mark_in_reach;
}

#endif
