/* cgi_static: the cheapest CGI program, to be linked with -static: headers, "hello", end.
 *
 * Its own work is next to nothing, so what is measured with it is the server's way of starting programs.
 */
#include <unistd.h>

int main(void)
{
    static const char reply[] = "Content-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
    return write(1, reply, sizeof reply - 1) == (ssize_t)(sizeof reply - 1) ? 0 : 1;
}
