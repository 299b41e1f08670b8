/* files.h: whole files in memory. */
#ifndef DOUBLEP_TOOL_FILES_H
#define DOUBLEP_TOOL_FILES_H

#include <stddef.h>

/* The bytes of a file, gzip-compressed or not, or of stdin where path is "-"; to be freed. NULL and a message on
 * failure. A zero byte follows the last. */
char *file_read(const char *path, size_t *length, char *error, size_t error_size);

#endif
