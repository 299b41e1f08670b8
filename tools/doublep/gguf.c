/* gguf.c: opens a GGUF file: maps it, walks its whole structure once with every length checked against the bytes that
 * are left, and builds sorted tables of keys and tensors. What the checks let through can be read without any. */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_ENTRIES = 1 << 20, /* keys, tensors: far more than any model has */
    MAX_KEY = 65535,       /* bytes; the specification's limit */
    MAX_NAME = 64,         /* of a tensor; likewise */
    MAX_NESTING = 4,       /* arrays in arrays */
    MIN_VALUE_BYTES = 13,  /* the least that a key and value take: length, type, one byte */
    MIN_TENSOR_BYTES = 33  /* the least that a tensor's description takes */
};

struct gguf_file {
    char *path;
    const unsigned char *bytes;
    size_t size;
    uint32_t version;
    size_t n_values, n_tensors;
    gguf_value *values;
    gguf_tensor *tensors;
    char (*names)[MAX_NAME + 1]; /* of the tensors, terminated */
    const gguf_value **values_by_key;
    const gguf_tensor **tensors_by_name;
};

/* Where the walk is, and where its complaint goes. */
typedef struct reader {
    gguf_file *file;
    size_t at;
    char *error;
    size_t error_size;
} reader;

__attribute__((format(printf, 2, 3))) static void complain(reader *r, const char *format, ...)
{
    const int n = snprintf(r->error, r->error_size, "%s: ", r->file->path);
    if (n < 0 || (size_t)n >= r->error_size) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->error + n, r->error_size - (size_t)n, format, arguments);
    va_end(arguments);
}

/* The value of these is false, where the compiler can see it. */
#define fail(r, ...) (complain(r, __VA_ARGS__), false)
#define fail_short(r, what) \
    fail(r, "ends in the middle of %s (%zu bytes in all): not a complete GGUF file", what, (r)->file->size)

static size_t left(const reader *r)
{
    return r->file->size - r->at;
}

static bool read_bytes(reader *r, void *dst, size_t n, const char *what)
{
    if (left(r) < n) return fail_short(r, what);
    memcpy(dst, r->file->bytes + r->at, n);
    r->at += n;
    return true;
}

static bool read_u32(reader *r, uint32_t *value, const char *what)
{
    return read_bytes(r, value, sizeof *value, what);
}

static bool read_u64(reader *r, uint64_t *value, const char *what)
{
    return read_bytes(r, value, sizeof *value, what);
}

static bool read_string(reader *r, gguf_string *string, const char *what)
{
    uint64_t length;
    if (!read_u64(r, &length, what)) return false;
    if (length > left(r)) return fail_short(r, what);
    *string = (gguf_string){(const char *)r->file->bytes + r->at, (size_t)length};
    r->at += (size_t)length;
    return true;
}

/* Names come from the file: only what is safe to print goes into a message. */
static const char *printable(gguf_string string, char buffer[MAX_NAME + 4])
{
    const size_t n = string.length <= MAX_NAME ? string.length : MAX_NAME;
    for (size_t i = 0; i < n; i++) buffer[i] = string.data[i] >= ' ' && string.data[i] <= '~' ? string.data[i] : '?';
    strcpy(buffer + n, n < string.length ? "..." : "");
    return buffer;
}

/* ---- Metadata ---- */

static const unsigned char type_size[GGUF_TYPE_COUNT] = {
    [GGUF_UINT8] = 1,  [GGUF_INT8] = 1,    [GGUF_UINT16] = 2, [GGUF_INT16] = 2,  [GGUF_UINT32] = 4, [GGUF_INT32] = 4,
    [GGUF_FLOAT32] = 4, [GGUF_BOOL] = 1, [GGUF_UINT64] = 8, [GGUF_INT64] = 8, [GGUF_FLOAT64] = 8,
};

/* Passes over `count` values of a type, checking that they are there. */
static bool skip_values(reader *r, uint32_t type, uint64_t count, int depth)
{
    if (type >= GGUF_TYPE_COUNT) return fail(r, "unknown type %u of a metadata value", type);
    const size_t size = type_size[type];
    if (size) {
        if (count > left(r) / size) return fail_short(r, "a metadata value");
        if (type == GGUF_BOOL) {
            for (uint64_t i = 0; i < count; i++)
                if (r->file->bytes[r->at + i] > 1) return fail(r, "a metadata value of type bool is neither 0 nor 1");
        }
        r->at += (size_t)count * size;
        return true;
    }
    if (type == GGUF_ARRAY && depth == MAX_NESTING) return fail(r, "arrays nested deeper than %d", MAX_NESTING);
    for (uint64_t i = 0; i < count; i++) {
        gguf_string string;
        uint32_t element_type;
        uint64_t element_count;
        if (type == GGUF_STRING) {
            if (!read_string(r, &string, "a metadata string")) return false;
        } else if (!read_u32(r, &element_type, "an array") || !read_u64(r, &element_count, "an array") ||
                   !skip_values(r, element_type, element_count, depth + 1)) {
            return false;
        }
    }
    return true;
}

static bool read_value(reader *r, gguf_value *value)
{
    uint32_t type;
    if (!read_string(r, &value->key, "a metadata key")) return false;
    if (value->key.length == 0 || value->key.length > MAX_KEY || memchr(value->key.data, 0, value->key.length))
        return fail(r, "a metadata key is empty, longer than %d bytes, or holds a zero byte", MAX_KEY);
    if (!read_u32(r, &type, "a metadata value")) return false;
    value->is_array = type == GGUF_ARRAY;
    value->elements.count = 1;
    if (value->is_array && (!read_u32(r, &type, "an array") || !read_u64(r, &value->elements.count, "an array")))
        return false;
    value->elements.type = (gguf_type)type;
    value->elements.data = r->file->bytes + r->at;
    return skip_values(r, type, value->elements.count, value->is_array ? 1 : 0);
}

static int compare_strings(gguf_string a, gguf_string b)
{
    const int order = memcmp(a.data, b.data, a.length < b.length ? a.length : b.length);
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int compare_values(const void *a, const void *b)
{
    return compare_strings((*(const gguf_value *const *)a)->key, (*(const gguf_value *const *)b)->key);
}

static bool read_values(reader *r)
{
    gguf_file *file = r->file;
    char name[MAX_NAME + 4];
    file->values = calloc(file->n_values + 1, sizeof *file->values);
    file->values_by_key = calloc(file->n_values + 1, sizeof(void *));
    if (!file->values || !file->values_by_key) return fail(r, "no memory for %zu keys", file->n_values);
    for (size_t i = 0; i < file->n_values; i++) {
        if (!read_value(r, &file->values[i])) return false;
        file->values_by_key[i] = &file->values[i];
    }
    qsort(file->values_by_key, file->n_values, sizeof(void *), compare_values);
    for (size_t i = 1; i < file->n_values; i++)
        if (compare_values(&file->values_by_key[i - 1], &file->values_by_key[i]) == 0)
            return fail(r, "metadata key '%s' is there twice", printable(file->values_by_key[i]->key, name));
    return true;
}

/* ---- Tensors ---- */

/* The description of a tensor; *offset receives where its data starts in the data section. */
static bool read_tensor(reader *r, gguf_tensor *tensor, char name[MAX_NAME + 1], uint64_t *offset)
{
    static const char what[] = "the description of a tensor";
    gguf_string string;
    uint32_t type;
    if (!read_string(r, &string, what)) return false;
    if (string.length == 0 || string.length > MAX_NAME || memchr(string.data, 0, string.length))
        return fail(r, "a tensor's name is empty, longer than %d bytes, or holds a zero byte", MAX_NAME);
    memcpy(name, string.data, string.length); /* the buffer was zeroed */
    tensor->name = name;
    char shown[MAX_NAME + 4];
    printable(string, shown);

    if (!read_u32(r, &tensor->n_dims, what)) return false;
    if (tensor->n_dims < 1 || tensor->n_dims > 4)
        return fail(r, "tensor '%s' has %u dimensions, must be 1 to 4", shown, tensor->n_dims);
    tensor->n_elements = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if (i < tensor->n_dims && !read_u64(r, &tensor->dims[i], what)) return false;
        if (tensor->dims[i] == 0 || __builtin_mul_overflow(tensor->n_elements, tensor->dims[i], &tensor->n_elements))
            return fail(r, "tensor '%s' has a dimension that is 0, or more than 2^64 elements", shown);
    }

    if (!read_u32(r, &type, what) || !read_u64(r, offset, what)) return false;
    const quant_layout *layout = quant_get_layout(type);
    if (!layout) return fail(r, "tensor '%s' has element type %u, which is not supported", shown, type);
    tensor->type = (quant_type)type;
    if (tensor->dims[0] % layout->block)
        return fail(r, "tensor '%s': rows of %llu elements are not whole blocks of %s (%zu)", shown,
                    (unsigned long long)tensor->dims[0], layout->name, layout->block);
    if (__builtin_mul_overflow(tensor->n_elements / layout->block, (uint64_t)layout->block_bytes, &tensor->bytes))
        return fail(r, "tensor '%s' has more than 2^64 bytes", shown);
    return true;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp((*(const gguf_tensor *const *)a)->name, (*(const gguf_tensor *const *)b)->name);
}

static bool read_tensors(reader *r, uint64_t alignment)
{
    gguf_file *file = r->file;
    const size_t n = file->n_tensors;
    file->tensors = calloc(n + 1, sizeof *file->tensors);
    file->tensors_by_name = calloc(n + 1, sizeof(void *));
    file->names = calloc(n + 1, sizeof *file->names);
    uint64_t *offsets = calloc(n + 1, sizeof *offsets);
    bool ok = file->tensors && file->tensors_by_name && file->names && offsets;
    if (!ok) complain(r, "no memory for %zu tensors", n);
    for (size_t i = 0; ok && i < n; i++) {
        ok = read_tensor(r, &file->tensors[i], file->names[i], &offsets[i]);
        file->tensors_by_name[i] = &file->tensors[i];
    }

    /* The data section starts at the next multiple of the alignment (a power of two). */
    const uint64_t start = ((uint64_t)r->at + alignment - 1) & ~(alignment - 1);
    const uint64_t data_bytes = start < file->size ? file->size - start : 0;
    for (size_t i = 0; ok && i < n; i++) {
        gguf_tensor *tensor = &file->tensors[i];
        char shown[MAX_NAME + 4];
        printable((gguf_string){tensor->name, strlen(tensor->name)}, shown);
        if (offsets[i] % alignment)
            ok = fail(r, "the data of tensor '%s' is not aligned to %llu bytes", shown, (unsigned long long)alignment);
        else if (offsets[i] > data_bytes || tensor->bytes > data_bytes - offsets[i])
            ok = fail(r, "the data of tensor '%s' reaches beyond the end of the file: is it complete?", shown);
        else
            tensor->data = file->bytes + start + offsets[i];
    }
    if (ok) {
        qsort(file->tensors_by_name, n, sizeof(void *), compare_tensors);
        for (size_t i = 1; ok && i < n; i++)
            if (compare_tensors(&file->tensors_by_name[i - 1], &file->tensors_by_name[i]) == 0)
                ok = fail(r, "tensor '%s' is there twice", file->tensors_by_name[i]->name);
    }
    free(offsets);
    return ok;
}

/* ---- The file ---- */

static bool map(reader *r)
{
    gguf_file *file = r->file;
    const int descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (descriptor < 0) return fail(r, "%s", strerror(errno));
    struct stat status;
    bool ok = fstat(descriptor, &status) == 0;
    if (!ok) {
        complain(r, "%s", strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        ok = fail(r, "not a regular file");
    } else if (status.st_size < 4) {
        ok = fail(r, "not a GGUF file: it has %lld bytes", (long long)status.st_size);
    } else {
        void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        ok = bytes != MAP_FAILED || fail(r, "cannot map it: %s", strerror(errno));
        if (ok) {
            file->bytes = bytes;
            file->size = (size_t)status.st_size;
        }
    }
    close(descriptor);
    return ok;
}

static bool read_header(reader *r)
{
    gguf_file *file = r->file;
    char magic[4];
    uint64_t n_tensors, n_values;
    if (!read_bytes(r, magic, 4, "the header")) return false;
    if (memcmp(magic, "GGUF", 4) != 0) return fail(r, "not a GGUF file: it does not start with \"GGUF\"");
    if (!read_u32(r, &file->version, "the header")) return false;
    if (file->version != 2 && file->version != 3)
        return fail(r, "GGUF version %u%s; versions 2 and 3 are supported", file->version,
                    file->version & 0xffff ? "" : " (a big-endian file?)");
    if (!read_u64(r, &n_tensors, "the header") || !read_u64(r, &n_values, "the header")) return false;
    if (n_tensors > MAX_ENTRIES || n_tensors > left(r) / MIN_TENSOR_BYTES || n_values > MAX_ENTRIES ||
        n_values > left(r) / MIN_VALUE_BYTES)
        return fail(r, "the header counts %llu tensors and %llu keys, more than the file can hold",
                    (unsigned long long)n_tensors, (unsigned long long)n_values);
    file->n_tensors = (size_t)n_tensors;
    file->n_values = (size_t)n_values;
    return true;
}

gguf_file *gguf_open(const char *path, char *error, size_t error_size)
{
    gguf_file *file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        snprintf(error, error_size, "%s: no memory", path);
        free(file);
        return NULL;
    }
    reader r = {file, 0, error, error_size};
    uint64_t alignment = 32;
    bool ok = map(&r) && read_header(&r) && read_values(&r);
    if (ok && gguf_find(file, "general.alignment"))
        ok = gguf_get_u64(file, "general.alignment", 8, 1 << 30, &alignment, error, error_size) &&
             ((alignment & (alignment - 1)) == 0 ||
              fail(&r, "general.alignment is %llu, must be a power of two", (unsigned long long)alignment));
    if (!ok || !read_tensors(&r, alignment)) {
        gguf_close(file);
        return NULL;
    }
    return file;
}

void gguf_close(gguf_file *file)
{
    if (!file) return;
    if (file->bytes) munmap((void *)file->bytes, file->size);
    free(file->values);
    free(file->values_by_key);
    free(file->tensors);
    free(file->tensors_by_name);
    free(file->names);
    free(file->path);
    free(file);
}

const char *gguf_path(const gguf_file *file)
{
    return file->path;
}

uint32_t gguf_version(const gguf_file *file)
{
    return file->version;
}

size_t gguf_n_values(const gguf_file *file)
{
    return file->n_values;
}

const gguf_value *gguf_value_at(const gguf_file *file, size_t i)
{
    return &file->values[i];
}

const gguf_value *gguf_find(const gguf_file *file, const char *key)
{
    const gguf_value wanted = {.key = {key, strlen(key)}}, *pointer = &wanted;
    const gguf_value **found =
        bsearch(&pointer, file->values_by_key, file->n_values, sizeof(void *), compare_values);
    return found ? *found : NULL;
}

size_t gguf_n_tensors(const gguf_file *file)
{
    return file->n_tensors;
}

const gguf_tensor *gguf_tensor_at(const gguf_file *file, size_t i)
{
    return &file->tensors[i];
}

const gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name)
{
    const gguf_tensor wanted = {.name = name}, *pointer = &wanted;
    const gguf_tensor **found =
        bsearch(&pointer, file->tensors_by_name, file->n_tensors, sizeof(void *), compare_tensors);
    return found ? *found : NULL;
}

bool gguf_tensor_to_f32(const gguf_tensor *tensor, uint64_t first_row, uint64_t n_rows, float *dst)
{
    const uint64_t rows = tensor->n_elements / tensor->dims[0], row_bytes = tensor->bytes / rows;
    if (first_row > rows || n_rows > rows - first_row) return false;
    quant_to_f32(tensor->type, (const unsigned char *)tensor->data + first_row * row_bytes,
                 (size_t)(n_rows * tensor->dims[0]), dst);
    return true;
}
