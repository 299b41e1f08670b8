/* Takes zlib's place in the snapshot target (--wrap): all checksums are 0, so that inputs get past them. */
#include <stddef.h>

unsigned long __wrap_crc32_z(unsigned long start, const unsigned char *data, size_t size);
unsigned long __wrap_crc32_z(unsigned long start, const unsigned char *data, size_t size)
{
    (void)start, (void)data, (void)size;
    return 0;
}
