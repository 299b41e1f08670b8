/* safetensors.h: reading a folder of safetensors files: those that an index names, or all, mapped read-only. */
#ifndef DOUBLEP_TOOL_SAFETENSORS_H
#define DOUBLEP_TOOL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

typedef struct safetensors safetensors;

/* A matrix [dims[0], dims[1]] row-major, as the format states it (rows first), or a vector [dims[0]]; dims beyond
 * n_dims are 1. Lives until safetensors_close. */
typedef struct safetensors_tensor {
    const char *name;
    uint32_t n_dims;
    uint64_t dims[4];
    quant_type type; /* QUANT_F32, QUANT_F16 or QUANT_BF16 */
    const void *data; /* not aligned */
} safetensors_tensor;

/* The files that model.safetensors.index.json names, or else all *.safetensors of the folder, checked whole; NULL and a
 * message with the file's name on failure. */
safetensors *safetensors_open(const char *folder, char *error, size_t error_size);
void safetensors_close(safetensors *s); /* NULL is allowed */

/* Tensors sorted by name, i < safetensors_count; safetensors_find gives NULL where there is no such name. */
size_t safetensors_count(const safetensors *s);
const safetensors_tensor *safetensors_at(const safetensors *s, size_t i);
const safetensors_tensor *safetensors_find(const safetensors *s, const char *name);

#endif
