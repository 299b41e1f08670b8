/* Replacing a file as a whole: what is written goes into another file in the same folder, which takes the name when it is
 * complete and on the medium. Whatever happens before, a crash included, the name stands for what it stood for. */
#ifndef DP_RUNTIME_REPLACE_H
#define DP_RUNTIME_REPLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dp_replacement {
    const char *path;
    char *temporary; /* its name, from malloc */
    int file, folder;
} dp_replacement;

/* Each returns 0 or the errno of what failed. After a failure, and only then, the caller gives up; a replacement that
 * was finished is over. */
int dp_replace_begin(dp_replacement *r, const char *path);
int dp_replace_write(const dp_replacement *r, uint64_t offset, const void *data, size_t bytes);
int dp_replace_finish(dp_replacement *r, uint64_t file_bytes);
void dp_replace_give_up(dp_replacement *r);

#endif
