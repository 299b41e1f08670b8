/* sampler.h: the next token from its logits: the largest, or a draw from their softmax at a temperature. */
#ifndef DOUBLEP_TOOL_SAMPLER_H
#define DOUBLEP_TOOL_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

typedef struct sampler {
    double temperature; /* 0: always the largest logit, the lowest id among equals */
    uint64_t state;     /* of the random numbers (SplitMix64); start with a seed */
} sampler;

/* -1 where the logits have a NaN or an infinite maximum: the model's numbers cannot be trusted then. */
int32_t sampler_next(sampler *s, const float *logits, size_t n);

#endif
