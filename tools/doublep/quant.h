/* quant.h: the element types of GGUF tensors: block layouts, to float, and from float for the types that are written. */
#ifndef DOUBLEP_TOOL_QUANT_H
#define DOUBLEP_TOOL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As GGUF numbers them; numbers that are missing here are not supported. */
typedef enum quant_type {
    QUANT_F32 = 0,
    QUANT_F16 = 1,
    QUANT_Q4_0 = 2,
    QUANT_Q4_1 = 3,
    QUANT_Q5_0 = 6,
    QUANT_Q5_1 = 7,
    QUANT_Q8_0 = 8,
    QUANT_Q4_K = 12,
    QUANT_Q5_K = 13,
    QUANT_Q6_K = 14,
    QUANT_BF16 = 30
} quant_type;

typedef struct quant_layout {
    const char *name;  /* "q8_0" */
    size_t block;      /* elements in a block */
    size_t block_bytes;
} quant_layout;

/* NULL where the type is not supported. */
const quant_layout *quant_get_layout(uint32_t type);

/* dst[i] = element i of src, i < n; n a multiple of the type's block. src needs no alignment. */
void quant_to_f32(quant_type type, const void *src, size_t n, float *dst);

/* The inverse for F32, F16, BF16 (round to nearest even) and Q8_0 (scale max/127 kept as f16). False for other types,
 * and where the type cannot hold the values: finite ones beyond F16; for Q8_0 also NaN and Inf. */
bool quant_from_f32(quant_type type, const float *src, size_t n, void *dst);

#endif
