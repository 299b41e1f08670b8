/* gguf.h: reading GGUF files (versions 2 and 3, little-endian): metadata and tensors, mapped read-only.
 *
 * gguf_open checks the whole structure once, so that nothing after it can meet a bad length, offset or type; the other
 * functions check only what the caller expects of a key. All pointers point into the mapping and live until gguf_close.
 * Functions that take `error` write a message with the file's name there when they return false or NULL. */
#ifndef DOUBLEP_TOOL_GGUF_H
#define DOUBLEP_TOOL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

typedef struct gguf_file gguf_file;

/* Types of metadata values, as the format numbers them. */
typedef enum gguf_type {
    GGUF_UINT8 = 0,
    GGUF_INT8 = 1,
    GGUF_UINT16 = 2,
    GGUF_INT16 = 3,
    GGUF_UINT32 = 4,
    GGUF_INT32 = 5,
    GGUF_FLOAT32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_UINT64 = 10,
    GGUF_INT64 = 11,
    GGUF_FLOAT64 = 12,
    GGUF_TYPE_COUNT = 13
} gguf_type;

/* Bytes in the file: not terminated, may hold any byte. */
typedef struct gguf_string {
    const char *data;
    size_t length;
} gguf_string;

/* An array of metadata: `count` elements of `type`, which start at data. */
typedef struct gguf_array {
    gguf_type type;
    uint64_t count;
    const unsigned char *data;
} gguf_array;

/* One key with its value: a scalar or a string has count 1; an array has is_array set and its elements' type. */
typedef struct gguf_value {
    gguf_string key;
    bool is_array;
    gguf_array elements;
} gguf_value;

/* A tensor: dims[0] is the length of a row; dims beyond n_dims are 1. */
typedef struct gguf_tensor {
    const char *name; /* terminated */
    uint32_t n_dims;
    uint64_t dims[4];
    quant_type type;
    const void *data; /* aligned to the file's alignment, at least 8 */
    uint64_t bytes;
    uint64_t n_elements;
} gguf_tensor;

/* Maps and checks a file; NULL and a message on failure. Tensors of types that quant.h does not know are a failure. */
gguf_file *gguf_open(const char *path, char *error, size_t error_size);
void gguf_close(gguf_file *file); /* NULL is allowed */

const char *gguf_path(const gguf_file *file);
uint32_t gguf_version(const gguf_file *file);

/* Metadata in the file's order, i < gguf_n_values; gguf_find gives NULL where there is no such key. */
size_t gguf_n_values(const gguf_file *file);
const gguf_value *gguf_value_at(const gguf_file *file, size_t i);
const gguf_value *gguf_find(const gguf_file *file, const char *key);

/* The value of a key that must be there (ask gguf_find first about keys that need not): false and a message where the
 * key is missing, has another type or is out of range. Integers of any width and sign are accepted as u64; floats and
 * integers as f64. */
bool gguf_get_u64(const gguf_file *file, const char *key, uint64_t min, uint64_t max, uint64_t *value, char *error,
                  size_t error_size);
bool gguf_get_f64(const gguf_file *file, const char *key, double min, double max, double *value, char *error,
                  size_t error_size);
bool gguf_get_bool(const gguf_file *file, const char *key, bool *value, char *error, size_t error_size);
bool gguf_get_string(const gguf_file *file, const char *key, gguf_string *value, char *error, size_t error_size);

/* Arrays: of strings, of integers (any width), of numbers (floats or integers). */
bool gguf_get_strings(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size);
bool gguf_get_ints(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size);
bool gguf_get_floats(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size);

/* Elements, i < count. Integers beyond int64_t saturate. Strings are read in order: the array's `data` and `count`
 * move on to the rest; false at the end. */
int64_t gguf_array_int(const gguf_array *array, uint64_t i);
double gguf_array_float(const gguf_array *array, uint64_t i);
bool gguf_array_next_string(gguf_array *array, gguf_string *string);

/* Tensors in the file's order, i < gguf_n_tensors; gguf_find_tensor gives NULL where there is no such name. */
size_t gguf_n_tensors(const gguf_file *file);
const gguf_tensor *gguf_tensor_at(const gguf_file *file, size_t i);
const gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name);

/* dst = rows first_row .. first_row + n_rows - 1 as float, dims[0] each (all dims above the first count as rows).
 * False where the tensor has not so many rows. */
bool gguf_tensor_to_f32(const gguf_tensor *tensor, uint64_t first_row, uint64_t n_rows, float *dst);

#endif
