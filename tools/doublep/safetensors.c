/* safetensors.c: a file is the header's length (u64), the header (JSON: name to dtype, shape, data_offsets), and the
 * data. Every number of the header is checked against the file before a tensor becomes visible. */
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char index_name[] = "model.safetensors.index.json";

enum { MAX_HEADER = 100 << 20 }; /* bytes; the format's limit */

typedef struct mapped_file {
    char *path;
    const unsigned char *bytes;
    size_t size;
    json_t *header; /* owns the tensors' names */
} mapped_file;

struct safetensors {
    mapped_file *files;
    size_t n_files;
    safetensors_tensor *tensors;
    size_t n_tensors;
    char *error;
    size_t error_size;
};

__attribute__((format(printf, 3, 4))) static bool fail(const safetensors *s, const char *path, const char *format, ...)
{
    const int n = snprintf(s->error, s->error_size, "%s: ", path);
    if (n < 0 || (size_t)n >= s->error_size) return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(s->error + n, s->error_size - (size_t)n, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- Which files ---- */

/* Adds folder/name once. */
static bool add_file(safetensors *s, const char *folder, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", folder, name) < 0) return fail(s, folder, "no memory");
    for (size_t i = 0; i < s->n_files; i++) {
        if (strcmp(s->files[i].path, path) == 0) {
            free(path);
            return true;
        }
    }
    mapped_file *files = realloc(s->files, (s->n_files + 1) * sizeof *files);
    if (!files) {
        free(path);
        return fail(s, folder, "no memory");
    }
    s->files = files;
    s->files[s->n_files++] = (mapped_file){.path = path};
    return true;
}

static bool list_from_index(safetensors *s, const char *folder, const json_t *index, const char *path)
{
    const char *tensor;
    json_t *map = json_object_get(index, "weight_map"), *name;
    if (!json_is_object(map) || json_object_size(map) == 0) return fail(s, path, "has no \"weight_map\"");
    json_object_foreach(map, tensor, name) {
        const char *text = json_string_value(name);
        if (!text || !*text || strchr(text, '/'))
            return fail(s, path, "\"weight_map\" of tensor '%s' is not the name of a file", tensor);
        if (!add_file(s, folder, text)) return false;
    }
    return true;
}

static int is_safetensors(const struct dirent *entry)
{
    const size_t length = strlen(entry->d_name);
    return length > 12 && strcmp(entry->d_name + length - 12, ".safetensors") == 0;
}

static bool list_files(safetensors *s, const char *folder)
{
    char *path;
    if (asprintf(&path, "%s/%s", folder, index_name) < 0) return fail(s, folder, "no memory");
    bool ok;
    if (access(path, F_OK) == 0) {
        json_error_t why;
        json_t *index = json_load_file(path, 0, &why);
        ok = index ? list_from_index(s, folder, index, path) : fail(s, path, "%s (line %d)", why.text, why.line);
        json_decref(index);
    } else {
        struct dirent **entries;
        const int n = scandir(folder, &entries, is_safetensors, alphasort);
        ok = n >= 0 || fail(s, folder, "%s", strerror(errno));
        for (int i = 0; i < n; i++) {
            ok = ok && add_file(s, folder, entries[i]->d_name);
            free(entries[i]);
        }
        if (n >= 0) free(entries);
        if (ok && s->n_files == 0) ok = fail(s, folder, "holds no *.safetensors");
    }
    free(path);
    return ok;
}

/* ---- One file ---- */

static bool map_file(safetensors *s, mapped_file *file)
{
    const int descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return fail(s, file->path, "%s", strerror(errno));
    struct stat status;
    bool ok = true;
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size < 8) {
        ok = fail(s, file->path, "not a safetensors file");
    } else {
        void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        ok = bytes != MAP_FAILED || fail(s, file->path, "cannot map it: %s", strerror(errno));
        if (ok) {
            file->bytes = bytes;
            file->size = (size_t)status.st_size;
        }
    }
    close(descriptor);
    return ok;
}

static bool get_u64(const json_t *array, size_t i, uint64_t *value)
{
    const json_t *number = json_array_get(array, i);
    if (!json_is_integer(number) || json_integer_value(number) < 0) return false;
    *value = (uint64_t)json_integer_value(number);
    return true;
}

static bool read_tensor(const safetensors *s, const mapped_file *file, const char *name, const json_t *entry,
                        const unsigned char *data, uint64_t data_bytes, safetensors_tensor *tensor)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    if (!dtype || !json_is_array(shape) || json_array_size(offsets) != 2)
        return fail(s, file->path, "tensor '%s' lacks dtype, shape or data_offsets", name);
    if (strcmp(dtype, "F32") == 0) tensor->type = QUANT_F32;
    else if (strcmp(dtype, "F16") == 0) tensor->type = QUANT_F16;
    else if (strcmp(dtype, "BF16") == 0) tensor->type = QUANT_BF16;
    else return fail(s, file->path, "tensor '%s' has dtype %s; F32, F16 and BF16 are supported", name, dtype);

    const size_t n_dims = json_array_size(shape);
    if (n_dims < 1 || n_dims > 4) return fail(s, file->path, "tensor '%s' has %zu dimensions", name, n_dims);
    tensor->name = name;
    tensor->n_dims = (uint32_t)n_dims;
    uint64_t bytes = quant_get_layout(tensor->type)->block_bytes, first, end;
    for (size_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if ((i < n_dims && !get_u64(shape, i, &tensor->dims[i])) || tensor->dims[i] == 0 ||
            __builtin_mul_overflow(bytes, tensor->dims[i], &bytes))
            return fail(s, file->path, "tensor '%s' has an impossible shape", name);
    }
    if (!get_u64(offsets, 0, &first) || !get_u64(offsets, 1, &end) || first > end || end > data_bytes)
        return fail(s, file->path, "tensor '%s' reaches beyond the end of the file: is it complete?", name);
    if (end - first != bytes)
        return fail(s, file->path, "tensor '%s' has %llu bytes of data, its shape needs %llu", name,
                    (unsigned long long)(end - first), (unsigned long long)bytes);
    tensor->data = data + first;
    return true;
}

static bool read_file(safetensors *s, mapped_file *file)
{
    uint64_t header_bytes;
    if (!map_file(s, file)) return false;
    memcpy(&header_bytes, file->bytes, sizeof header_bytes);
    if (header_bytes > MAX_HEADER || header_bytes > file->size - 8)
        return fail(s, file->path, "not a safetensors file: a header of %llu bytes", (unsigned long long)header_bytes);
    json_error_t why;
    file->header = json_loadb((const char *)file->bytes + 8, (size_t)header_bytes, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(file->header))
        return fail(s, file->path, "the header is not a JSON object%s%s", file->header ? "" : ": ",
                    file->header ? "" : why.text);

    const size_t n = json_object_size(file->header);
    safetensors_tensor *tensors = realloc(s->tensors, (s->n_tensors + n + 1) * sizeof *tensors);
    if (!tensors) return fail(s, file->path, "no memory for %zu tensors", n);
    s->tensors = tensors;
    const unsigned char *data = file->bytes + 8 + header_bytes;
    const char *name;
    json_t *entry;
    json_object_foreach(file->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        if (!read_tensor(s, file, name, entry, data, file->size - 8 - header_bytes, &s->tensors[s->n_tensors]))
            return false;
        s->n_tensors++;
    }
    return true;
}

/* ---- All files ---- */

static int compare(const void *a, const void *b)
{
    return strcmp(((const safetensors_tensor *)a)->name, ((const safetensors_tensor *)b)->name);
}

safetensors *safetensors_open(const char *folder, char *error, size_t error_size)
{
    safetensors *s = calloc(1, sizeof *s);
    if (!s) {
        snprintf(error, error_size, "%s: no memory", folder);
        return NULL;
    }
    s->error = error;
    s->error_size = error_size;
    bool ok = list_files(s, folder);
    for (size_t i = 0; ok && i < s->n_files; i++) ok = read_file(s, &s->files[i]);
    if (ok && s->n_tensors == 0) ok = fail(s, folder, "its safetensors files hold no tensors");
    if (ok) qsort(s->tensors, s->n_tensors, sizeof *s->tensors, compare);
    for (size_t i = 1; ok && i < s->n_tensors; i++)
        if (compare(&s->tensors[i - 1], &s->tensors[i]) == 0)
            ok = fail(s, folder, "tensor '%s' is in two files", s->tensors[i].name);
    if (ok) return s;
    safetensors_close(s);
    return NULL;
}

void safetensors_close(safetensors *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n_files; i++) {
        if (s->files[i].bytes) munmap((void *)s->files[i].bytes, s->files[i].size);
        json_decref(s->files[i].header);
        free(s->files[i].path);
    }
    free(s->files);
    free(s->tensors);
    free(s);
}

size_t safetensors_count(const safetensors *s)
{
    return s->n_tensors;
}

const safetensors_tensor *safetensors_at(const safetensors *s, size_t i)
{
    return &s->tensors[i];
}

const safetensors_tensor *safetensors_find(const safetensors *s, const char *name)
{
    const safetensors_tensor wanted = {.name = name};
    return bsearch(&wanted, s->tensors, s->n_tensors, sizeof *s->tensors, compare);
}
