/* UDP (RFC 768), and the echo service on port 7 (RFC 862). */
#include "net.h"

enum { PORT_ECHO = 7, PORT_DHCP_SERVER = 67, PORT_DHCP_CLIENT = 68 };

static uint32_t pseudo_header(uint32_t source, uint32_t destination, uint32_t length)
{
    return (source >> 16) + (source & 0xFFFF) + (destination >> 16) + (destination & 0xFFFF) + PROTOCOL_UDP + length;
}

uint8_t *udp_begin(struct station *station)
{
    uint8_t *payload = ip_begin(station);
    return payload ? payload + UDP : NULL;
}

/* Sends the payload of so many bytes that was put where `udp_begin` said. */
void udp_send(struct station *station, const uint8_t *mac, uint32_t to, uint16_t from_port, uint16_t port,
              uint32_t length)
{
    uint8_t *header = ip_begin(station);
    if (!header)
        return;
    put16(header, from_port);
    put16(header + 2, port);
    put16(header + 4, UDP + length);
    put16(header + 6, 0);
    uint16_t sum = checksum(header, UDP + length, pseudo_header(station->address, to, UDP + length));
    put16(header + 6, sum ? sum : 0xFFFF);
    ip_send(station, mac, to, PROTOCOL_UDP, UDP + length);
}

void udp_receive(struct packet *packet, bool checked)
{
    const uint8_t *header = packet->data;
    if (packet->length < UDP || get16(header + 4) < UDP || get16(header + 4) > packet->length)
        return;
    uint32_t length = get16(header + 4);
    if (!checked && get16(header + 6) &&
        checksum(header, length, pseudo_header(packet->source, packet->destination, length)))
        return;
    uint16_t source_port = get16(header), port = get16(header + 2);
    if (port == PORT_DHCP_CLIENT && source_port == PORT_DHCP_SERVER) {
        dhcp_receive(packet, header + UDP, length - UDP);
    } else if (port == PORT_ECHO && source_port != PORT_ECHO && packet->station->address &&
               packet->destination == packet->station->address && length <= FRAME_MAX - ETHERNET - IPV4) {
        uint8_t *payload = udp_begin(packet->station);
        if (!payload)
            return;
        memcpy(payload, header + UDP, length - UDP);
        udp_send(packet->station, packet->source_mac, packet->source, PORT_ECHO, source_port, length - UDP);
    }
}
