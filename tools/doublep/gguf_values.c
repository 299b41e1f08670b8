/* gguf_values.c: typed access to the metadata of an open GGUF file: what the caller expects of a key against what the
 * file has there. The file's structure was checked when it was opened. */
#include "gguf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const type_names[GGUF_TYPE_COUNT] = {"uint8", "int8",  "uint16", "int16", "uint32", "int32", "float32",
                                                        "bool",  "string", "array", "uint64", "int64",  "float64"};

__attribute__((format(printf, 5, 6))) static bool fail(const gguf_file *file, const char *key, char *error,
                                                       size_t error_size, const char *format, ...)
{
    const int n = snprintf(error, error_size, "%s: metadata key '%s' ", gguf_path(file), key);
    if (n < 0 || (size_t)n >= error_size) return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error + n, error_size - (size_t)n, format, arguments);
    va_end(arguments);
    return false;
}

static bool is_integer(gguf_type type)
{
    return type != GGUF_FLOAT32 && type != GGUF_FLOAT64 && type != GGUF_BOOL && type != GGUF_STRING &&
           type != GGUF_ARRAY;
}

static bool is_number(gguf_type type)
{
    return is_integer(type) || type == GGUF_FLOAT32 || type == GGUF_FLOAT64;
}

static bool is_bool(gguf_type type)
{
    return type == GGUF_BOOL;
}

static bool is_string(gguf_type type)
{
    return type == GGUF_STRING;
}

/* The value of a key of the wanted kind; NULL and a message otherwise. */
static const gguf_value *get(const gguf_file *file, const char *key, bool is_array, bool (*is_kind)(gguf_type),
                             const char *kind, char *error, size_t error_size)
{
    const gguf_value *value = gguf_find(file, key);
    if (!value) {
        fail(file, key, error, error_size, "is missing");
    } else if (value->is_array != is_array || !is_kind(value->elements.type)) {
        fail(file, key, error, error_size, "is %s%s, must be %s", value->is_array ? "an array of " : "",
             type_names[value->elements.type], kind);
        value = NULL;
    }
    return value;
}

#define LOAD(type, pointer)                  \
    __extension__({                          \
        type loaded;                         \
        memcpy(&loaded, pointer, sizeof loaded); \
        loaded;                              \
    })

int64_t gguf_array_int(const gguf_array *array, uint64_t i)
{
    const unsigned char *data = array->data;
    switch (array->type) {
    case GGUF_UINT8: return data[i];
    case GGUF_INT8: return (int8_t)data[i];
    case GGUF_UINT16: return LOAD(uint16_t, data + 2 * i);
    case GGUF_INT16: return LOAD(int16_t, data + 2 * i);
    case GGUF_UINT32: return LOAD(uint32_t, data + 4 * i);
    case GGUF_INT32: return LOAD(int32_t, data + 4 * i);
    case GGUF_INT64: return LOAD(int64_t, data + 8 * i);
    case GGUF_UINT64: {
        const uint64_t value = LOAD(uint64_t, data + 8 * i);
        return value > INT64_MAX ? INT64_MAX : (int64_t)value;
    }
    default: return 0;
    }
}

double gguf_array_float(const gguf_array *array, uint64_t i)
{
    switch (array->type) {
    case GGUF_FLOAT32: return (double)LOAD(float, array->data + 4 * i);
    case GGUF_FLOAT64: return LOAD(double, array->data + 8 * i);
    case GGUF_UINT64: return (double)LOAD(uint64_t, array->data + 8 * i);
    default: return (double)gguf_array_int(array, i);
    }
}

bool gguf_array_next_string(gguf_array *array, gguf_string *string)
{
    if (array->type != GGUF_STRING || array->count == 0) return false;
    string->length = (size_t)LOAD(uint64_t, array->data);
    string->data = (const char *)array->data + 8;
    array->data += 8 + string->length;
    array->count--;
    return true;
}

bool gguf_get_u64(const gguf_file *file, const char *key, uint64_t min, uint64_t max, uint64_t *value, char *error,
                  size_t error_size)
{
    const gguf_value *found = get(file, key, false, is_integer, "an integer", error, error_size);
    if (!found) return false;
    const unsigned long long low = min, high = max;
    const int64_t as_signed = gguf_array_int(&found->elements, 0);
    if (as_signed < 0)
        return fail(file, key, error, error_size, "is %lld, must be in [%llu, %llu]", (long long)as_signed, low, high);
    const uint64_t number =
        found->elements.type == GGUF_UINT64 ? LOAD(uint64_t, found->elements.data) : (uint64_t)as_signed;
    if (number < min || number > max)
        return fail(file, key, error, error_size, "is %llu, must be in [%llu, %llu]", (unsigned long long)number, low,
                    high);
    *value = number;
    return true;
}

bool gguf_get_f64(const gguf_file *file, const char *key, double min, double max, double *value, char *error,
                  size_t error_size)
{
    const gguf_value *found = get(file, key, false, is_number, "a number", error, error_size);
    if (!found) return false;
    const double number = gguf_array_float(&found->elements, 0);
    if (!(number >= min && number <= max)) /* NaN is out of any range */
        return fail(file, key, error, error_size, "is %g, must be in [%g, %g]", number, min, max);
    *value = number;
    return true;
}

bool gguf_get_bool(const gguf_file *file, const char *key, bool *value, char *error, size_t error_size)
{
    const gguf_value *found = get(file, key, false, is_bool, "a bool", error, error_size);
    if (found) *value = found->elements.data[0] != 0;
    return found != NULL;
}

bool gguf_get_string(const gguf_file *file, const char *key, gguf_string *value, char *error, size_t error_size)
{
    const gguf_value *found = get(file, key, false, is_string, "a string", error, error_size);
    if (!found) return false;
    gguf_array one = found->elements;
    return gguf_array_next_string(&one, value);
}

static bool get_array(const gguf_file *file, const char *key, bool (*is_kind)(gguf_type), const char *kind,
                      gguf_array *array, char *error, size_t error_size)
{
    const gguf_value *found = get(file, key, true, is_kind, kind, error, error_size);
    if (found) *array = found->elements;
    return found != NULL;
}

bool gguf_get_strings(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size)
{
    return get_array(file, key, is_string, "an array of strings", array, error, error_size);
}

bool gguf_get_ints(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size)
{
    return get_array(file, key, is_integer, "an array of integers", array, error, error_size);
}

bool gguf_get_floats(const gguf_file *file, const char *key, gguf_array *array, char *error, size_t error_size)
{
    return get_array(file, key, is_number, "an array of numbers", array, error, error_size);
}
