/* safetensors.h: reading safetensors files: one, several, or those that an index names, mapped read-only. */
#ifndef DOUBLEP_TOOL_SAFETENSORS_H
#define DOUBLEP_TOOL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

typedef struct safetensors safetensors;

/* A matrix [dims[0], dims[1]] row-major, as the format states it (rows first), or a vector [dims[0]]. */
typedef struct safetensors_tensor {
    const char *name;
    uint32_t n_dims;
    uint64_t dims[4];
    quant_type type; /* QUANT_F32, QUANT_F16 or QUANT_BF16 */
    const void *data;
    uint64_t bytes;
    uint64_t n_elements;
} safetensors_tensor;

/* All *.safetensors of a folder, checked whole; NULL and a message on failure. */
safetensors *safetensors_open_folder(const char *folder, char *error, size_t error_size);
void safetensors_close(safetensors *s); /* NULL is allowed */

size_t safetensors_n_tensors(const safetensors *s);
const safetensors_tensor *safetensors_find(const safetensors *s, const char *name); /* NULL where there is none */

#endif
