/* scratch.c: files of tests. Failures of the system end the test. */
#include "scratch.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];
static char *paths[64];
static size_t n_paths;

void scratch_create(void)
{
    strcpy(folder, "/tmp/doublep-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static size_t visit(bool remove_files)
{
    size_t n = 0;
    DIR *directory = opendir(folder);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        if (remove_files) unlinkat(dirfd(directory), entry->d_name, 0);
        n++;
    }
    closedir(directory);
    return n;
}

void scratch_remove(void)
{
    visit(true);
    rmdir(folder);
    while (n_paths) free(paths[--n_paths]);
}

size_t scratch_count(void)
{
    return visit(false);
}

const char *scratch_path(const char *name)
{
    ck_assert_uint_lt(n_paths, sizeof paths / sizeof paths[0]);
    ck_assert_int_ge(asprintf(&paths[n_paths], "%s/%s", folder, name), 0);
    return paths[n_paths++];
}

void scratch_write(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_quietly(file != NULL);
    assert_quietly(fwrite(bytes, 1, n, file) == n || n == 0);
    assert_quietly(fclose(file) == 0);
}

char *scratch_read(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "cannot open %s", path);
    ck_assert_int_eq(fseek(file, 0, SEEK_END), 0);
    *n = (size_t)ftell(file);
    rewind(file);
    char *content = malloc(*n + 1);
    ck_assert_ptr_nonnull(content);
    ck_assert_uint_eq(fread(content, 1, *n, file), *n);
    content[*n] = 0;
    fclose(file);
    return content;
}

void bytes_free(bytes *b)
{
    free(b->data);
    *b = (bytes){0};
}

void bytes_put(bytes *b, const void *data, size_t n)
{
    if (n == 0) return;
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = realloc(b->data, b->capacity);
        assert_quietly(b->data != NULL);
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

void bytes_u32(bytes *b, uint32_t value)
{
    bytes_put(b, &value, sizeof value);
}

void bytes_u64(bytes *b, uint64_t value)
{
    bytes_put(b, &value, sizeof value);
}

void bytes_string(bytes *b, const char *text)
{
    bytes_u64(b, strlen(text));
    bytes_put(b, text, strlen(text));
}

uint32_t random_u32(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

float random_normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += random_u32(state) * 0x1p-32;
    return (float)sum;
}
