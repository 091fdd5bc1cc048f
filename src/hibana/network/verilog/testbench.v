// Plays recorded samples, and compares every spike and output of every step with PyTorch's.
module net_tb;
localparam SAMPLES = 1, STEPS = 1, INPUTS = 1, NEURONS = 1, OUTPUTS = 1;
localparam RESULTS = 8 * (INPUTS + NEURONS);  // first bit of the outputs in a row
reg clk = 0, rst = 1, start = 0, clear = 0, tvalid = 0;
reg [7:0] tdata = 0;
wire ready, s_tready, m_valid, m_last;
wire [31:0] m_data, class_index;
net dut (.clk(clk), .rst(rst), .start(start), .clear(clear), .ready(ready), .s_axis_tdata(tdata),
    .s_axis_tvalid(tvalid), .s_axis_tready(s_tready), .m_axis_tdata(m_data), .m_axis_tvalid(m_valid),
    .m_axis_tready(1'b1), .m_axis_tlast(m_last), .class_index(class_index));
always #5 clk = ~clk;
reg [RESULTS + 32 * OUTPUTS - 1:0] rows [0:SAMPLES * STEPS - 1];  // inputs, spikes and outputs of each step
reg [RESULTS + 32 * OUTPUTS - 1:0] row;
reg [8 * INPUTS - 1:0] inputs;  // of the step before
integer s, t, i, equal, right = 0, cycles = 0, received = 0;
always @(posedge clk) if (!ready && !rst) cycles = cycles + 1;
always @(posedge clk) if (m_valid) begin
    if (m_data !== row[RESULTS + 32 * received +: 32]) equal = 0;
    received = m_last ? 0 : received + 1;
end
initial begin
    $readmemh("net_tb.hex", rows);
    repeat (3) @(negedge clk);
    rst = 0;
    for (s = 0; s < SAMPLES; s = s + 1) begin
        @(negedge clk) clear = 1;
        @(negedge clk) clear = 0;
        while (!ready) @(negedge clk);
        equal = 1;
        if (s == 0) cycles = 0;
        for (t = 0; t < STEPS; t = t + 1) begin
            row = rows[s * STEPS + t];
            if (t == 0 || row[8 * INPUTS - 1:0] !== inputs) begin
                inputs = row[8 * INPUTS - 1:0];
                for (i = 0; i < INPUTS; i = i + 1) begin
                    tvalid = 1;
                    tdata = row[8 * i +: 8];
                    @(negedge clk);
                end
                tvalid = 0;
            end
            start = 1;
            @(negedge clk) start = 0;
            while (!ready) @(negedge clk);
            // compare the spikes
        end
        $display("sample %0d class %0d", s, class_index);
        right = right + equal;
    end
    $display("%0d cycles per step", cycles / (SAMPLES * STEPS));
    $display("%0d of %0d equal", right, SAMPLES);
    $finish;
end
endmodule
