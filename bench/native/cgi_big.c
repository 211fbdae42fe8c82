/* cgi_big: a CGI program that writes as many bytes as the query string says, 64 KiB at a time.
 *
 * It sends no Content-Length, as most such programs don't: the server has to frame the answer itself.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int write_all(const char *bytes, size_t length)
{
    while (length) {
        ssize_t written = write(1, bytes, length);
        if (written < 0)
            return -1;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

int main(void)
{
    static char block[65536];
    const char *query = getenv("QUERY_STRING");
    long long left = query ? atoll(query) : 0;
    memset(block, 'x', sizeof block);
    const char header[] = "Content-Type: application/octet-stream\r\n\r\n";
    if (write_all(header, sizeof header - 1) < 0)
        return 1;
    while (left > 0) {
        size_t part = left < (long long)sizeof block ? (size_t)left : sizeof block;
        if (write_all(block, part) < 0)
            return 1;
        left -= (long long)part;
    }
    return 0;
}
