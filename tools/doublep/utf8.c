/* utf8.c: see utf8.h. */
#include "utf8.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the character that starts with `lead`; 0 where no character does. */
static size_t character_length(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xc2 && lead < 0xe0)
        return 2;
    if (lead >= 0xe0 && lead < 0xf0)
        return 3;
    return lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
}

/* Whether the first n bytes of a character can be so: no overlong forms, surrogates, or code points past U+10FFFF. */
static bool valid_start(const unsigned char *s, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return false;
    if (n < 2)
        return true;
    return !(s[0] == 0xe0 && s[1] < 0xa0) && !(s[0] == 0xed && s[1] >= 0xa0) && !(s[0] == 0xf0 && s[1] < 0x90) &&
           !(s[0] == 0xf4 && s[1] >= 0x90);
}

size_t utf8_whole(const char *text, size_t length)
{
    const unsigned char *const s = (const unsigned char *)text;
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        const unsigned char *const lead = s + length - back;
        if ((*lead & 0xc0) == 0x80)
            continue;
        return character_length(*lead) > back && valid_start(lead, back) ? length - back : length;
    }
    return length;
}

char *utf8_valid_copy(const char *text, size_t length)
{
    static const char replacement[] = "\xef\xbf\xbd";
    const unsigned char *const s = (const unsigned char *)text;
    char *const copy = malloc(3 * length + 1);
    if (!copy)
        return NULL;
    char *out = copy;
    for (size_t i = 0; i < length;) {
        size_t n = s[i] == 0 ? 0 : character_length(s[i]);
        if (n > length - i || !valid_start(s + i, n))
            n = 0;
        memcpy(out, n ? text + i : replacement, n ? n : 3);
        out += n ? n : 3;
        i += n ? n : 1;
    }
    *out = '\0';
    return copy;
}
