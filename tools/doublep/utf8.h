/* utf8.h: tokens may end inside a character; text that goes out may not. */
#ifndef DOUBLEP_TOOL_UTF8_H
#define DOUBLEP_TOOL_UTF8_H

#include <stddef.h>

/* Bytes of text[0 .. length) before a character that is not complete yet; bytes that can never become a character
 * count as whole. */
size_t utf8_whole(const char *text, size_t length);

/* A terminated copy in which U+FFFD stands for every byte that is not part of valid UTF-8; to be freed. NULL: no memory. */
char *utf8_valid_copy(const char *text, size_t length);

#endif
