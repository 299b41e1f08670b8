/* gguf.c: the GGUF reader: a file with every kind of value is read as it was written; truncated, patched and
 * randomly changed files give an error or a file that can be read whole, never a crash. Sanitizers see the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../suite.h"
#include "gguf.h"
#include "scratch.h"

static char error[512];

/* Where things are in the file that build() makes, for the tests that spoil them. */
typedef struct places {
    size_t alignment, array_type, array_count, string_length, bool_value, nested_type;
    size_t n_dims, dims, type, offset, second_name, header_end;
} places;

static void key(bytes *b, const char *name, uint32_t type)
{
    bytes_string(b, name);
    bytes_u32(b, type);
}

static void put_f32(bytes *b, float value)
{
    bytes_put(b, &value, sizeof value);
}

/* A small valid file that ends with a page, so that a read beyond it is not likely to find anything. */
static bytes build(places *at)
{
    bytes b = {0};
    const double f64 = -2.5;
    bytes_put(&b, "GGUF", 4);
    bytes_u32(&b, 3);
    bytes_u64(&b, 2);
    bytes_u64(&b, 17);
    key(&b, "general.alignment", GGUF_UINT32);
    at->alignment = b.n;
    bytes_u32(&b, 64);
    key(&b, "u8", GGUF_UINT8);
    bytes_put(&b, "\xff", 1);
    key(&b, "i8", GGUF_INT8);
    bytes_put(&b, "\xff", 1);
    key(&b, "u16", GGUF_UINT16);
    bytes_put(&b, "\xff\xff", 2);
    key(&b, "i16", GGUF_INT16);
    bytes_put(&b, "\xfe\xff", 2);
    key(&b, "u32", GGUF_UINT32);
    bytes_u32(&b, UINT32_MAX);
    key(&b, "i32", GGUF_INT32);
    bytes_u32(&b, 7);
    key(&b, "f32", GGUF_FLOAT32);
    put_f32(&b, 1.5f);
    key(&b, "bool", GGUF_BOOL);
    at->bool_value = b.n;
    bytes_put(&b, "\1", 1);
    key(&b, "string", GGUF_STRING);
    at->string_length = b.n;
    bytes_string(&b, "text");
    key(&b, "u64", GGUF_UINT64);
    bytes_u64(&b, UINT64_MAX);
    key(&b, "i64", GGUF_INT64);
    bytes_u64(&b, (uint64_t)-9);
    key(&b, "f64", GGUF_FLOAT64);
    bytes_put(&b, &f64, sizeof f64);
    key(&b, "ints", GGUF_ARRAY);
    at->array_type = b.n;
    bytes_u32(&b, GGUF_INT16);
    at->array_count = b.n;
    bytes_u64(&b, 3);
    bytes_put(&b, "\1\0\2\0\xff\xff", 6);
    key(&b, "strings", GGUF_ARRAY);
    bytes_u32(&b, GGUF_STRING);
    bytes_u64(&b, 3);
    bytes_string(&b, "one");
    bytes_string(&b, "");
    bytes_string(&b, "three");
    key(&b, "floats", GGUF_ARRAY);
    bytes_u32(&b, GGUF_FLOAT32);
    bytes_u64(&b, 2);
    put_f32(&b, 0.25f);
    put_f32(&b, -4);
    key(&b, "nested", GGUF_ARRAY);
    bytes_u32(&b, GGUF_ARRAY);
    bytes_u64(&b, 2);
    at->nested_type = b.n;
    bytes_u32(&b, GGUF_UINT8);
    bytes_u64(&b, 2);
    bytes_put(&b, "ab", 2);
    bytes_u32(&b, GGUF_STRING);
    bytes_u64(&b, 1);
    bytes_string(&b, "deep");

    bytes_string(&b, "first");
    at->n_dims = b.n;
    bytes_u32(&b, 2);
    at->dims = b.n;
    bytes_u64(&b, 32);
    bytes_u64(&b, 3);
    at->type = b.n;
    bytes_u32(&b, QUANT_Q8_0);
    at->offset = b.n;
    bytes_u64(&b, 0);
    bytes_string(&b, "other");
    at->second_name = b.n - 5;
    bytes_u32(&b, 1);
    const size_t rest = b.n;
    bytes_u64(&b, 0); /* set below */
    bytes_u32(&b, QUANT_F32);
    bytes_u64(&b, 128);
    at->header_end = b.n;

    while (b.n % 64) bytes_put(&b, "", 1);
    for (int row = 0; row < 3; row++) {
        bytes_put(&b, row == 0 ? "\x00\x3c" : row == 1 ? "\x00\x40" : "\x00\xbc", 2); /* scales 1, 2, -1 */
        for (int i = 0; i < 32; i++) bytes_put(&b, &(int8_t){(int8_t)(i - 16)}, 1);
    }
    while (b.n % 64) bytes_put(&b, "", 1);
    const uint64_t n = (4096 - b.n % 4096) / 4;
    memcpy(b.data + rest, &n, sizeof n);
    for (uint64_t i = 0; i < n; i++) put_f32(&b, (float)i);
    ck_assert_uint_eq(b.n % 4096, 0);
    return b;
}

static void read_element(const gguf_array *array, uint64_t i)
{
    volatile double sink = gguf_array_float(array, i) + (double)gguf_array_int(array, i);
    (void)sink;
}

/* Touches everything that an open file offers. */
static void read_all(const gguf_file *file)
{
    for (size_t i = 0; i < gguf_n_values(file); i++) {
        const gguf_value *value = gguf_value_at(file, i);
        gguf_array elements = value->elements;
        gguf_string string;
        size_t sum = 0;
        while (gguf_array_next_string(&elements, &string))
            for (size_t c = 0; c < string.length; c++) sum += (unsigned char)string.data[c];
        if (elements.type != GGUF_ARRAY && elements.type != GGUF_STRING)
            for (uint64_t e = 0; e < elements.count; e++) read_element(&elements, e);
        volatile size_t sink = sum;
        (void)sink;
    }
    for (size_t i = 0; i < gguf_n_tensors(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        float *row = malloc(t->dims[0] * sizeof *row);
        assert_quietly(row != NULL);
        for (uint64_t r = 0; r < t->n_elements / t->dims[0]; r++) assert_quietly(gguf_tensor_to_f32(t, r, 1, row));
        assert_quietly(!gguf_tensor_to_f32(t, t->n_elements / t->dims[0], 1, row));
        assert_quietly(gguf_find_tensor(file, t->name) == t);
        free(row);
    }
}

/* Opens bytes; a file that opens is read whole, one that does not has a message with its name. In memory: there are
 * thousands of them. */
static bool try_open(const void *data, size_t n)
{
    char path[40];
    const int memory = memfd_create("gguf", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    assert_quietly(memory >= 0 && write(memory, data, n) == (ssize_t)n);
    error[0] = 0;
    gguf_file *file = gguf_open(path, error, sizeof error);
    if (file) read_all(file);
    else if (strstr(error, path) != error || strlen(error) < strlen(path) + 3) ck_abort_msg("message: %s", error);
    gguf_close(file);
    close(memory);
    return file != NULL;
}

START_TEST(reads_what_was_written)
{
    places at;
    bytes b = build(&at);
    const char *path = scratch_path("valid.gguf");
    scratch_write(path, b.data, b.n);
    gguf_file *file = gguf_open(path, error, sizeof error);
    ck_assert_msg(file != NULL, "%s", error);
    read_all(file);
    ck_assert_uint_eq(gguf_version(file), 3);
    ck_assert_uint_eq(gguf_n_values(file), 17);

    static const struct {
        const char *key;
        uint64_t value;
    } integers[] = {{"u8", 255}, {"u16", 65535}, {"u32", UINT32_MAX}, {"i32", 7}, {"u64", UINT64_MAX}};
    uint64_t u64;
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++) {
        ck_assert(gguf_get_u64(file, integers[i].key, 0, UINT64_MAX, &u64, error, sizeof error));
        ck_assert_uint_eq(u64, integers[i].value);
        ck_assert(gguf_get_u64(file, integers[i].key, u64, u64, &u64, error, sizeof error));
        ck_assert(!gguf_get_u64(file, integers[i].key, 0, u64 - 1, &u64, error, sizeof error));
    }
    static const char *const not_u64[] = {"i8", "i16", "i64", "f32", "bool", "string", "ints", "missing"};
    for (size_t i = 0; i < sizeof not_u64 / sizeof not_u64[0]; i++) {
        ck_assert(!gguf_get_u64(file, not_u64[i], 0, UINT64_MAX, &u64, error, sizeof error));
        ck_assert_ptr_nonnull(strstr(error, not_u64[i]));
    }

    double f64;
    ck_assert(gguf_get_f64(file, "f32", 1.5, 1.5, &f64, error, sizeof error) && f64 == 1.5);
    ck_assert(gguf_get_f64(file, "f64", -3, 0, &f64, error, sizeof error) && f64 == -2.5);
    ck_assert(gguf_get_f64(file, "i64", -9, -9, &f64, error, sizeof error) && f64 == -9);
    ck_assert(!gguf_get_f64(file, "f64", 0, 1, &f64, error, sizeof error));
    ck_assert(!gguf_get_f64(file, "string", 0, 1, &f64, error, sizeof error));
    bool yes = false;
    ck_assert(gguf_get_bool(file, "bool", &yes, error, sizeof error) && yes);
    ck_assert(!gguf_get_bool(file, "u8", &yes, error, sizeof error));
    gguf_string string;
    ck_assert(gguf_get_string(file, "string", &string, error, sizeof error));
    ck_assert_uint_eq(string.length, 4);
    ck_assert_mem_eq(string.data, "text", 4);
    ck_assert(!gguf_get_string(file, "strings", &string, error, sizeof error));

    gguf_array array;
    ck_assert(gguf_get_ints(file, "ints", &array, error, sizeof error));
    ck_assert_uint_eq(array.count, 3);
    ck_assert_int_eq(gguf_array_int(&array, 1), 2);
    ck_assert_int_eq(gguf_array_int(&array, 2), -1);
    ck_assert(!gguf_get_ints(file, "floats", &array, error, sizeof error));
    ck_assert(gguf_get_floats(file, "floats", &array, error, sizeof error));
    ck_assert(gguf_array_float(&array, 0) == 0.25 && gguf_array_float(&array, 1) == -4);
    ck_assert(gguf_get_strings(file, "strings", &array, error, sizeof error));
    ck_assert(gguf_array_next_string(&array, &string) && string.length == 3);
    ck_assert(gguf_array_next_string(&array, &string) && string.length == 0);
    ck_assert(gguf_array_next_string(&array, &string) && memcmp(string.data, "three", 5) == 0);
    ck_assert(!gguf_array_next_string(&array, &string));

    const gguf_tensor *t = gguf_find_tensor(file, "first");
    ck_assert_ptr_nonnull(t);
    ck_assert(t->n_dims == 2 && t->dims[0] == 32 && t->dims[1] == 3 && t->dims[2] == 1 && t->bytes == 102);
    float rows[2][32];
    ck_assert(gguf_tensor_to_f32(t, 1, 2, rows[0]));
    for (int i = 0; i < 32; i++) ck_assert(rows[0][i] == 2.0f * (float)(i - 16) && rows[1][i] == (float)(16 - i));
    ck_assert(!gguf_tensor_to_f32(t, 2, 2, rows[0]));
    ck_assert(!gguf_tensor_to_f32(t, UINT64_MAX, 2, rows[0]));
    ck_assert_ptr_null(gguf_find_tensor(file, "firs"));
    gguf_close(file);
    bytes_free(&b);
}
END_TEST

START_TEST(truncation_at_every_length)
{
    places at;
    bytes b = build(&at);
    for (size_t n = 0; n < b.n; n++) assert_quietly(!try_open(b.data, n));
    ck_assert(try_open(b.data, b.n));
    bytes_free(&b);
}
END_TEST

START_TEST(every_header_byte_changed)
{
    static const unsigned char values[] = {0, 9, 0x7f, 0xff};
    places at;
    bytes b = build(&at);
    size_t opened = 0, refused = 0;
    for (size_t i = 0; i < at.header_end; i++) {
        const unsigned char old = b.data[i];
        for (size_t v = 0; v < 8 + sizeof values; v++) {
            b.data[i] = v < 8 ? (unsigned char)(old ^ 1u << v) : values[v - 8];
            if (try_open(b.data, b.n)) opened++;
            else refused++;
        }
        b.data[i] = old;
    }
    ck_assert_uint_gt(opened, 100); /* values and names may change freely */
    ck_assert_uint_gt(refused, 100);
    bytes_free(&b);
}
END_TEST

START_TEST(random_changes)
{
    uint64_t seed = 20;
    places at;
    bytes b = build(&at);
    unsigned char *changed = malloc(b.n);
    for (int round = 0; round < 5000; round++) {
        memcpy(changed, b.data, b.n);
        const uint32_t n = 1 + random_u32(&seed) % 8;
        for (uint32_t i = 0; i < n; i++)
            changed[random_u32(&seed) % at.header_end] = (unsigned char)random_u32(&seed);
        try_open(changed, b.n - (round % 4 ? 0 : random_u32(&seed) % b.n));
    }
    free(changed);
    bytes_free(&b);
}
END_TEST

/* Opens the valid file with `value` (of `size` bytes) at `place`; the message must name the fault. */
static void refuses(size_t place, uint64_t value, size_t size, const char *word)
{
    places at;
    bytes b = build(&at);
    memcpy(b.data + place, &value, size);
    ck_assert_msg(!try_open(b.data, b.n), "opened, though: %s", word);
    ck_assert_msg(strstr(error, word) != NULL, "the message is: %s (wanted: %s)", error, word);
    bytes_free(&b);
}

START_TEST(faults_are_named)
{
    places at;
    bytes b = build(&at);
    refuses(0, 'X', 1, "not a GGUF file");
    refuses(4, 1, 4, "version 1");
    refuses(4, 0x03000000, 4, "big-endian");
    refuses(8, UINT64_MAX, 8, "more than the file can hold");
    refuses(8, 1u << 20, 8, "more than the file can hold");
    refuses(16, UINT64_MAX / 13, 8, "more than the file can hold");
    refuses(24, 0, 8, "metadata key is empty");
    refuses(24, INT64_MAX, 8, "ends in the middle");
    refuses(at.alignment, 0, 4, "general.alignment");
    refuses(at.alignment, 24, 4, "power of two");
    refuses(at.alignment, UINT32_MAX, 4, "general.alignment");
    refuses(at.bool_value, 2, 1, "bool");
    refuses(at.string_length, UINT64_MAX, 8, "ends in the middle");
    refuses(at.array_type, GGUF_TYPE_COUNT, 4, "unknown type");
    refuses(at.array_count, UINT64_MAX / 2, 8, "ends in the middle");
    refuses(at.nested_type, 77, 4, "unknown type");
    refuses(at.n_dims, 0, 4, "dimensions");
    refuses(at.n_dims, 5, 4, "dimensions");
    refuses(at.dims, 0, 8, "dimension that is 0");
    refuses(at.dims, 33, 8, "not whole blocks");
    refuses(at.dims, 1ull << 63, 8, "more than 2^64 elements");
    refuses(at.dims, 21ull << 58, 8, "more than 2^64 bytes");
    refuses(at.dims, 1ull << 57, 8, "reaches beyond the end");
    refuses(at.dims + 8, 5000, 8, "reaches beyond the end");
    refuses(at.type, 10, 4, "type 10, which is not supported");
    refuses(at.type, UINT32_MAX, 4, "not supported");
    refuses(at.offset, 32, 8, "not aligned");
    refuses(at.offset, 1 << 20, 8, "reaches beyond the end");
    refuses(at.offset, UINT64_MAX - 63, 8, "reaches beyond the end");
    memcpy(b.data + at.second_name, "first", 5);
    ck_assert(!try_open(b.data, b.n));
    ck_assert_ptr_nonnull(strstr(error, "'first' is there twice"));
    bytes_free(&b);
}
END_TEST

START_TEST(other_faulty_files)
{
    bytes b = {0};
    bytes_put(&b, "GGUF", 4);
    bytes_u32(&b, 2);
    bytes_u64(&b, 0);
    bytes_u64(&b, 2);
    for (int i = 0; i < 2; i++) {
        key(&b, "key", GGUF_UINT32);
        bytes_u32(&b, 1);
    }
    ck_assert(!try_open(b.data, b.n));
    ck_assert_ptr_nonnull(strstr(error, "'key' is there twice"));

    b.n = 16; /* arrays in arrays, each of one element */
    bytes_u64(&b, 1);
    key(&b, "deep", GGUF_ARRAY);
    for (int i = 0; i < 1000; i++) {
        bytes_u32(&b, GGUF_ARRAY);
        bytes_u64(&b, 1);
    }
    ck_assert(!try_open(b.data, b.n));
    ck_assert_ptr_nonnull(strstr(error, "nested"));

    b.n = 16; /* nothing but a header is a valid file, of version 2 too */
    bytes_u64(&b, 0);
    ck_assert(try_open(b.data, b.n));

    ck_assert_ptr_null(gguf_open(scratch_path("missing"), error, sizeof error));
    ck_assert_ptr_nonnull(strstr(error, "No such file"));
    ck_assert_ptr_null(gguf_open("/tmp", error, sizeof error));
    ck_assert_ptr_nonnull(strstr(error, "not a regular file"));
    bytes_free(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *tcase = tcase_create("files");
    tcase_add_checked_fixture(tcase, scratch_create, scratch_remove);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, reads_what_was_written);
    tcase_add_test(tcase, truncation_at_every_length);
    tcase_add_test(tcase, every_header_byte_changed);
    tcase_add_test(tcase, random_changes);
    tcase_add_test(tcase, faults_are_named);
    tcase_add_test(tcase, other_faulty_files);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
