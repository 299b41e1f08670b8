/* scratch.h: a folder for a test's files, which goes when the test ends; bytes of a file under construction. */
#ifndef DOUBLEP_TESTS_SCRATCH_H
#define DOUBLEP_TESTS_SCRATCH_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ck_assert for loops: ck_assert writes to a pipe each time that it holds. */
#define assert_quietly(condition) \
    do { \
        if (!(condition)) ck_abort_msg("not so: %s", #condition); \
    } while (0)

/* For tcase_add_checked_fixture. */
void scratch_create(void);
void scratch_remove(void);

/* folder/name; each call has its own text, freed with the folder. */
const char *scratch_path(const char *name);

/* Files in the folder. */
size_t scratch_count(void);

void scratch_write(const char *path, const void *bytes, size_t n);

/* The file's content, terminated, to be freed. */
char *scratch_read(const char *path, size_t *n);

/* Bytes that grow; start with {0}. */
typedef struct bytes {
    unsigned char *data;
    size_t n, capacity;
} bytes;

void bytes_free(bytes *b);
void bytes_put(bytes *b, const void *data, size_t n);
void bytes_u32(bytes *b, uint32_t value);
void bytes_u64(bytes *b, uint64_t value);
void bytes_string(bytes *b, const char *text); /* length as u64, then the text */

/* The same numbers for the same seed, on any machine. */
uint32_t random_u32(uint64_t *state);
float random_normal(uint64_t *state); /* roughly: a sum of uniform numbers */

#endif
