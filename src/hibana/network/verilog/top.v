// A circuit on a board, controlled over a serial port with 8 data bits, no parity and 1 stop bit.
//
// The host sends "r" (set the network to rest), "i" and a byte for each input (a step on these inputs), or
// "s" (a step on the inputs of the step before). After a step, the board sends 4 bytes for each output, the
// lowest byte first. After each command, it sends a byte with the index of the largest score.
/* verilator lint_off UNUSEDSIGNAL */
/* verilator lint_off DECLFILENAME */
module top #(
    parameter CLOCK = 12000000,  // frequency of clk in Hz
    parameter BAUD = 115200,
    parameter INPUTS = 1
) (
    input wire clk,
    input wire rx,
    output wire tx
);
localparam [31:0] DIVIDER = CLOCK / BAUD;
localparam [15:0] BIT = DIVIDER[15:0];  // cycles per bit

reg [3:0] age = 0;  // resets the network after configuration
wire rst = age != 4'd15;
always @(posedge clk) if (rst) age <= age + 4'd1;

// The receiver samples the middle of each of 8 data bits and a stop bit, after a start bit.
reg [2:0] line = 3'b111;
reg [3:0] rx_left = 0;  // bits
reg [15:0] rx_time = 0;
reg [7:0] rx_data = 0;
reg rx_valid = 0;
always @(posedge clk) begin
    line <= {line[1:0], rx};
    rx_valid <= rx_left == 4'd1 && rx_time == 16'd0 && line[2];
    rx_time <= rx_time == 16'd0 ? BIT - 16'd1 : rx_time - 16'd1;
    if (rx_left == 4'd0) begin
        rx_time <= BIT + BIT / 16'd2;
        if (!line[2]) rx_left <= 4'd9;
    end else if (rx_time == 16'd0) begin
        rx_left <= rx_left - 4'd1;
        if (rx_left != 4'd1) rx_data <= {line[2], rx_data[7:1]};
    end
end

// The transmitter shifts a start bit, 8 data bits and a stop bit out.
wire tx_valid, tx_ready;
wire [7:0] tx_data;
reg [9:0] tx_bits = 10'h3ff;
reg [3:0] tx_left = 0;
reg [15:0] tx_time = 0;
assign tx = tx_bits[0];
assign tx_ready = tx_left == 4'd0;
always @(posedge clk) begin
    tx_time <= tx_ready || tx_time == 16'd0 ? BIT - 16'd1 : tx_time - 16'd1;
    if (tx_ready && tx_valid) {tx_left, tx_bits} <= {4'd10, 1'b1, tx_data, 1'b0};
    else if (!tx_ready && tx_time == 16'd0) {tx_left, tx_bits} <= {tx_left - 4'd1, 1'b1, tx_bits[9:1]};
end

reg [31:0] left = 0;  // inputs that the host has yet to send
reg start = 0, clear = 0, busy = 0;
reg [1:0] place = 0;  // byte of an output
wire ready, input_ready, output_valid, last;
wire [31:0] result, class_index;
wire finished = busy && ready && !start && !clear;
assign tx_valid = output_valid || finished;
assign tx_data = output_valid ? result[8 * place +: 8] : class_index[7:0];
net circuit (.clk(clk), .rst(rst), .start(start), .clear(clear), .ready(ready), .s_axis_tdata(rx_data),
    .s_axis_tvalid(rx_valid && left != 32'd0), .s_axis_tready(input_ready), .m_axis_tdata(result),
    .m_axis_tvalid(output_valid), .m_axis_tready(tx_ready && place == 2'd3), .m_axis_tlast(last),
    .class_index(class_index));
always @(posedge clk) begin
    start <= rx_valid && (left == 32'd1 || (left == 32'd0 && rx_data == "s"));
    clear <= rx_valid && left == 32'd0 && rx_data == "r";
    if (rx_valid && left != 32'd0) left <= left - 32'd1;
    if (rx_valid && left == 32'd0 && rx_data == "i") left <= INPUTS;
    if (start || clear) busy <= 1'b1;
    else if (finished && tx_ready) busy <= 1'b0;
    if (output_valid && tx_ready) place <= place + 2'd1;
end
endmodule
