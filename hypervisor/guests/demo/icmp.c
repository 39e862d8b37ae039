/* Echo, asked and answered (RFC 792). */
#include "net.h"

enum { ECHO_REPLY = 0, ECHO_REQUEST = 8, HEADER = 8, DATA = 56, IDENTIFIER = 0x4B44, PATIENCE_MS = 1000 };

static struct {
    uint32_t address;
    uint16_t sequence;
    uint64_t when;
} awaited, heard;

void icmp_receive(struct packet *packet)
{
    const uint8_t *data = packet->data;
    if (packet->length < HEADER || checksum(data, packet->length, 0) || !packet->station->address)
        return;
    if (data[0] == ECHO_REPLY && get16(data + 4) == IDENTIFIER && packet->source == awaited.address) {
        heard.address = packet->source;
        heard.sequence = get16(data + 6);
        heard.when = now();
    }
    if (data[0] != ECHO_REQUEST || packet->destination != packet->station->address ||
        packet->length > FRAME_MAX - ETHERNET - IPV4)
        return;
    uint8_t *reply = ip_begin(packet->station);
    if (!reply)
        return;
    memcpy(reply, data, packet->length);
    put32(reply, 0);
    put16(reply + 2, checksum(reply, packet->length, 0));
    ip_send(packet->station, packet->source_mac, packet->source, PROTOCOL_ICMP, packet->length);
}

static bool is_heard(void *unused)
{
    (void)unused;
    return heard.address == awaited.address && heard.sequence == awaited.sequence;
}

/* Sends an echo and waits for its answer, at most a second; gives the time that it took. */
bool ping(struct station *station, uint32_t address, uint16_t sequence, uint64_t *nanoseconds)
{
    uint8_t mac[6];
    if (!neighbour_find(station, address, mac))
        return false;
    uint8_t *data = ip_begin(station);
    if (!data)
        return false;
    put32(data, ECHO_REQUEST << 24);
    put16(data + 4, IDENTIFIER);
    put16(data + 6, sequence);
    for (uint32_t at = 0; at < DATA; at++)
        data[HEADER + at] = (uint8_t)at;
    put16(data + 2, checksum(data, HEADER + DATA, 0));
    awaited.address = address;
    awaited.sequence = sequence;
    heard.address = 0;
    uint64_t start = now();
    ip_send(station, mac, address, PROTOCOL_ICMP, HEADER + DATA);
    bool answered = wait_for(is_heard, NULL, PATIENCE_MS * MILLISECONDS);
    *nanoseconds = heard.when - start;
    return answered;
}
