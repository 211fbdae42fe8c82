/* cgi_static: the cheapest CGI program, linked with -static: headers, "hello", end.
 *
 * It does almost no work of its own, so it shows how the server starts programs.
 */
#include <unistd.h>

int main(void)
{
    static const char reply[] = "Content-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
    return write(1, reply, sizeof reply - 1) == (ssize_t)(sizeof reply - 1) ? 0 : 1;
}
